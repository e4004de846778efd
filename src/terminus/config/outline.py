"""A schema seen as the user sees it: keys, documentation, defaults, and the choices of tagged unions.

Messages, `config explain` and the house rules need to know what may stand at a path; only this file knows how
pydantic says it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Setting:
    """One leaf setting of a schema."""

    key: str
    """Dotted; `*` is any list entry, `[kind]` a tagged choice: `objective.weighting[min_snr].gamma`."""

    type: str
    default: str
    """As YAML would say it; "required" where there is none."""

    description: str


def leaf_settings(schema: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Every leaf setting in the order of declaration; a tagged choice comes before the settings of its variants."""
    for name, field in schema.model_fields.items():
        if name != "kind":  # told where the choice is made
            yield from _settings_at(f"{prefix}{name}", field)


def _settings_at(key: str, field: FieldInfo) -> Iterator[Setting]:
    description = field.description or ""
    variants = models(field.annotation)
    if not variants:
        yield Setting(key, type_name(field.annotation), default_text(field), description)
        return
    # Settings of settings: the choice first, then what each variant has.
    if _is_collection(field.annotation):
        key += ".*"
    kinds = [kind for kind in map(kind_of_model, variants) if kind]
    if kinds:
        yield Setting(f"{key}.kind", " | ".join(kinds), _default_kind(field), description)
    for variant in variants:
        kind = kind_of_model(variant)
        yield from leaf_settings(variant, f"{key}[{kind}]." if kind else f"{key}.")


def _default_kind(field: FieldInfo) -> str:
    kind = kind_of_model(type(field.default)) if isinstance(field.default, BaseModel) else None
    return kind or "required"


def models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The settings classes that may stand where this annotation does, or inside its lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return models(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ()
    return tuple(chain.from_iterable(models(argument) for argument in get_args(annotation)))


def kind_of_model(model: type[BaseModel]) -> str | None:
    """`min_snr` for a variant with `kind: Literal["min_snr"]`."""
    field = model.model_fields.get("kind")
    # Only a literal names a kind; a setting `kind` of any other type is an ordinary one.
    values = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return str(values[0]) if values else None


def default_text(field: FieldInfo) -> str:
    """The default in YAML's words, or "required"."""
    if field.is_required():
        return "required"
    return yaml_word(field.get_default(call_default_factory=True, validated_data={}))


def yaml_word(value: object) -> str:
    """A value on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return f"[{', '.join(yaml_word(entry) for entry in value)}]"  # pyright: ignore[reportUnknownVariableType]
        case _:
            return str(value) if str(value) else '""'


NAMES: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true/false", type(None): "null"}


def type_name(annotation: Any) -> str:
    """`integer | auto` for `int | Literal["auto"]`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    # What `Annotated` adds (limits, the key of a choice) is no part of the type's name.
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_name, arguments)))
    if origin in (dict, list, tuple, frozenset, set):
        return _collection_name(origin, arguments)
    return str(getattr(annotation, "__name__", annotation)).lower()


def _collection_name(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is dict:
        return f"mapping of {type_name(arguments[1])}"
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(type_name, arguments))}]"
    return f"list of {type_name(arguments[0])}"


def _is_collection(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple, dict):
        return True
    unions = (Union, types.UnionType, Annotated)
    return get_origin(annotation) in unions and any(_is_collection(argument) for argument in get_args(annotation))
