"""Settings of SimpleTuner: config.json (or .toml), multidatabackend.json, or the folder that holds them.

Keys may be written with or without `--`, and values as texts. Which images there are is a list of backends, of which
some hold images and others are caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from terminus.errors import UserError
from terminus.importing import meaning, simpletuner_backends, simpletuner_training
from terminus.importing.reading import Keys, nearest, read_json_settings, read_toml, root
from terminus.importing.recipe import Draft, account, data_only, slug
from terminus.importing.simpletuner_keys import CONFIG_KEYS, WHY

TRAINER = "SimpleTuner"
CONFIGS = ("config.json", "config.toml")
BACKENDS = "multidatabackend.json"


def read_simpletuner(path: Path) -> Draft:
    """The draft of a configuration with its backends, of backends alone, or of the folder of both."""
    # The configuration, or the backends alone; of a folder whichever is there.
    if path.is_dir():
        present = [path / name for name in (*CONFIGS, BACKENDS) if (path / name).is_file()]
        path = present[0] if present else path / CONFIGS[0]
    if path.suffix.lower() == ".toml":
        config = read_toml(path)
    else:
        found = read_json_settings(path)
        if isinstance(found, list):
            return _read(path, None, path, cast("list[object]", found))
        config = root(found, path)
    # A file holds what could stand on the command line: `--` before names, texts for values.
    config = Keys(_plain_names(config), str(path), spoken=True)
    beside = _backends(config, path)
    listed = read_json_settings(beside)
    if not isinstance(listed, list):
        raise UserError("this is not a list of backends", where=str(beside), fix="Correct data_backend_config.")
    return _read(path, config, beside, cast("list[object]", listed))


def is_config(values: Mapping[str, object]) -> bool:
    """Whether the keys of an object are those of a configuration."""
    names = {key.lstrip("-") for key in values}
    return bool(names & {"model_family", "data_backend_config", "model_type"})


def _plain_names(config: Keys) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in config.values.items():
        name = key.removeprefix("--")
        if name in found:
            raise UserError(f"{name} is there with and without --", where=config.file, fix="Remove one of them.")
        found[name] = value
    return found


def _backends(config: Keys, path: Path) -> Path:
    given = config.text("data_backend_config")
    # The path there is relative to where the trainer runs; beside the configuration is where it usually lies.
    named = [Path(nearest(given.value, str(path))), path.parent / Path(given.value).name] if given else []
    for place in (*named, path.parent / BACKENDS):
        if place.is_file():
            return place
    raise UserError(
        f"the list of image backends is not there ({given.value if given else BACKENDS})",
        where=str(path),
        rule="It is looked for as data_backend_config says, relative to this file, and beside it",
        fix=f"Put {BACKENDS} beside this file.",
    )


def _read(path: Path, config: Keys | None, beside: Path, listed: list[object]) -> Draft:
    # A name for the run: `config.json` says nothing, so it is that of its folder.
    what = f"{path.name}, settings of {TRAINER}" + (f", with {beside.name}" if config else "")
    draft = Draft(what, slug(path.parent.name if path.stem in ("config", "multidatabackend") else path.stem))
    # Places as that file has them: `[0].id`, without the key that holds the list here.
    entries = Keys({"backends": listed}, str(beside)).tables("backends")
    for index, one in enumerate(entries):
        one.place = f"[{index}]"
    config = config or Keys({}, str(path))
    family = config.text("model_family")
    if family and family.value != "sdxl":
        raise UserError(
            f"model_family is {family.value}", where=str(path), rule="Terminus trains SDXL and nothing else"
        )
    # Images, then training, then what nobody has asked for.
    draft.set("run.dir", f"runs/{draft.name}", "a new folder; that trainer's own results stay where they are")
    draft.set("data.store", f"runs/{draft.name}-data", "where prepared latents are kept")
    simpletuner_backends.read_simpletuner_backends(draft, config, entries)
    if config.values:
        simpletuner_training.read_simpletuner_training(draft, config)
    else:
        data_only(draft)
    for key in list(config.rest()):
        near = meaning.near(key, CONFIG_KEYS)
        draft.leave(config, key, WHY.get(key, f"unknown: no key of {TRAINER} that the importer knows{near}"))
    account(draft, (config, *entries))
    return draft
