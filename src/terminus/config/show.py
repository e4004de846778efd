"""Settings for reading: what is in force and who said so, what may be set, and the same for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel

from terminus.config.load import Loaded
from terminus.config.outline import leaf_settings, yaml_word


def show_settings(loaded: Loaded[Any]) -> list[str]:
    """One line per effective value, `key = value` and its origin: `default`, a line, or the command line."""
    # Lists are shown entry by entry, so that each has its own origin.
    rows = [
        (key, yaml_word(value), str(loaded.origins[key]) if key in loaded.origins else "default")
        for key, value in _leaves(loaded.value.model_dump(mode="json"), "")
    ]
    width = max((len(f"{key} = {value}") for key, value, _ in rows), default=0)
    return [f"{f'{key} = {value}':<{min(width, 60)}}  # {origin}" for key, value, origin in rows]


def schema(of: type[BaseModel]) -> Mapping[str, Any]:
    """The JSON Schema of a recipe, for editors and for other programs."""
    return of.model_json_schema()


def explain(loaded: Loaded[Any]) -> list[str]:
    """Every setting that exists: type, default, documentation; `*` marks those that this recipe sets."""
    # A setting of a variant is written only where that variant was chosen.
    written = set(_written(loaded.tree, ""))
    lines: list[str] = []
    for setting in leaf_settings(type(loaded.value)):
        mark = "*" if setting.key in written else " "
        lines.append(f"{mark} {setting.key}: {setting.type} = {setting.default}")
        lines.extend(f"      {line.strip()}" for line in setting.description.splitlines() if line.strip())
    return lines


def _written(value: object, key: str) -> Iterator[str]:
    """The keys of what a recipe says, as the outline of its schema calls them."""
    yield key
    if isinstance(value, list):
        for entry in cast("list[object]", value):
            yield from _written(entry, f"{key}.*")
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        kind = entries.get("kind")
        for name, entry in entries.items():
            # In the form of the outline: `objective.weighting[min_snr].gamma`.
            inside = f"{key}[{kind}].{name}" if kind and name != "kind" else f"{key}.{name}"
            yield from _written(entry, inside.lstrip("."))


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for name, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(cast("list[object]", value)):
            yield from _leaves(inner, f"{key}.{index}")
    else:
        yield key, value
