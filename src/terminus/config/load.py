"""From a recipe's name and the overrides of a command line to validated settings, and back to text."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from terminus.config.errors import ConfigError, Origin
from terminus.config.overrides import apply_overrides
from terminus.config.recipes import find_recipe, read_recipe
from terminus.config.source import MappingTree, Plain, leaf_values, plain_tree
from terminus.config.validation import dotted, problems

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """Settings together with where each came from."""

    value: T
    origins: Mapping[str, Origin]
    """`training.seed` to its place, for every value that was written; the others are defaults."""

    tree: Mapping[str, Plain]
    """What was written, after `extends` and overrides and before defaults."""


def read_tree(path: Path | str, overrides: Sequence[str] = ()) -> MappingTree:
    """The tree of a recipe under overrides, before any schema knows it. Raises as `load` does."""
    return apply_overrides(read_recipe(find_recipe(path)), overrides)


def load(path: Path | str, schema: type[T], overrides: Sequence[str] = ()) -> Loaded[T]:
    """The settings of a recipe file, or of a shipped recipe's name, under `key.path=value` overrides.

    Raises `UserError`: a file that cannot be read, or `ConfigError` with every problem of what it says.
    """
    tree = read_tree(path, overrides)
    written = plain_tree(tree)
    assert isinstance(written, dict)
    try:
        # by way of JSON, where strict means what YAML means: a list may be a tuple and a text a path
        value = schema.model_validate_json(json.dumps(written))
    except ValidationError as error:
        raise ConfigError(problems(error, schema, tree)) from None
    return Loaded(value, {dotted(place): origin for place, origin in leaf_values(tree)}, written)


def dump(config: BaseModel) -> str:
    """Every effective value as YAML that loads again to an equal object."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.allow_unicode = True
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()
