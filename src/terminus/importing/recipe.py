"""A recipe in the making: what was found, what means something else here, and what could not be carried over.

The three lists stand in the file itself, so that whoever reads the recipe in a year still knows what it lacks.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from terminus.config.recipes import MAX_BYTES
from terminus.config.source import Plain
from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError
from terminus.importing.reading import Keys, Sourced, shown
from terminus.training.recipe import Recipe

MAX_SOURCES = 500
WIDTH = 116
"""Of a line of the lists."""
_CHOICES = ("objective.weighting", "objective.loss", "data.buckets", "training.optimizer", "training.ema")
"""Tagged choices, which are written whole or not at all."""
_ROOMS = ("run", "model", "data", "objective", "training")


@dataclass(frozen=True)
class Left:
    """A key that could not be carried over."""

    key: str
    value: str
    """As it was, in a few characters; "" where the key is not set or stands for many."""
    why: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.why}" if self.value else f"{self.key}: {self.why}"


@dataclass
class Draft:
    """An importer's findings so far."""

    what: str
    """What was read, in words."""
    name: str
    """Of the run: letters, digits, dot, dash and underscore."""
    settings: dict[str, Sourced[Plain]] = field(default_factory=dict[str, Sourced[Plain]])
    """Dotted setting to value and origin."""
    sources: list[dict[str, Sourced[Plain]]] = field(default_factory=list[dict[str, Sourced[Plain]]])
    notes: list[str] = field(default_factory=list[str])
    """What was carried over and means something else here, or what holds where nothing was said."""
    left: list[Left] = field(default_factory=list[Left])
    same: list[str] = field(default_factory=list[str])
    """What was said and needs no line: the default here (from `settle`), or a part of something else (`account`)."""

    def set(self, setting: str, value: Plain, origin: str) -> None:
        """Lays down a setting; a later value replaces an earlier one."""
        self.settings[setting] = Sourced(value, origin)

    def leave(self, keys: Keys, key: str, why: str) -> None:
        """Lists a key as not carried over."""
        self.left.append(Left(keys.name(key), shown(keys.values.get(key), key), why))
        keys.raw(key)

    def source(self, kind: str, name: str, origin: str, **settings: Sourced[Plain]) -> str:
        """Adds a source under a name that no other has, and returns that name. `UserError` if there are too many."""
        if len(self.sources) == MAX_SOURCES:
            raise UserError(f"more than {MAX_SOURCES} sources", where=self.what, fix="Import it in parts.")
        # The first free of NAME, NAME-2, NAME-3 and so on.
        taken = {str(source["name"].value) for source in self.sources}
        plain = slug(name)
        free = next(one for one in (plain, *(f"{plain}-{n}" for n in range(2, MAX_SOURCES + 2))) if one not in taken)
        self.sources.append({"kind": Sourced(kind, ""), "name": Sourced(free, origin), **settings})
        return free


def slug(text: str) -> str:
    """A name for rows and runs: Unicode letters, digits, dot, dash, underscore, at most 60 of them."""
    return re.sub(r"[^\w.-]+", "-", printable_caption(text)).strip("-.")[:60] or "images"


def account(draft: Draft, every: Iterable[Keys]) -> None:
    """Names each key that was read and that no list names so far: it is in the recipe by what it decided."""
    # What stands in the file already: in a comment behind a setting, in one of the lists, or in a subset left whole.
    origins = [given.origin for one in (draft.settings, *draft.sources) for given in one.values()]
    named = set(re.findall(r"[\w.\[\]]+", "\n".join([*origins, *draft.notes, *draft.same, *map(str, draft.left)])))
    listed = {(left.key.partition(" ")[0], key) for left in draft.left for key in left.value.split(", ")}
    gone = {left.key for left in draft.left}
    # What does not is said once, so that every key of the source is in the file.
    for keys in every:
        for key, value in keys.values.items():
            name = keys.name(key)
            known = name in named or name in gone or (keys.place, key) in listed
            if value is not None and not isinstance(value, dict | list) and not known:
                draft.same.append(f"{name} = {shown(value, key)}")


def data_only(draft: Draft) -> None:
    """Says that nothing is known but images."""
    draft.notes.append(
        "This says nothing of a model or of its training. Both have their defaults here, which are those of the tiny "
        "nano: set model.start, training.images and training.learning_rate before you train."
    )


def settle(draft: Draft) -> dict[str, Any]:
    """The draft as the tree of a recipe that is valid.

    What its setting does not take (a batch of -1) is moved to what could not be carried over, and what is the default
    here to `same`. `UserError` if nothing is left to train on, or if what remains contradicts itself.
    """
    if not draft.sources:
        raise UserError(
            "there is no source of images in it that Terminus can read",
            where=draft.what,
            rule="; ".join(str(left) for left in draft.left[:5]),
        )
    # An objective is a tagged choice: without its kind no setting of it would be taken.
    if any(setting.startswith("objective.") for setting in draft.settings):
        draft.settings = {"objective.kind": Sourced("diffusion", ""), **draft.settings}
    # Each round drops the settings that the errors are about, until the recipe is valid.
    while True:
        tree = _tree(draft)
        try:
            recipe = Recipe.model_validate_json(json.dumps(tree))
        except ValidationError as error:
            if not _drop(draft, tree, error):
                given = "; ".join(problem["msg"] for problem in error.errors()[:3])
                raise UserError(
                    f"these settings contradict each other: {printable_caption(given)}", where=draft.what
                ) from None
        else:
            _leave_out_defaults(draft, recipe)
            return _tree(draft)


def written(draft: Draft) -> str:
    """The recipe as YAML with the origin of each setting and the three lists. `UserError` if that is too long."""
    # The recipe itself, each setting with its origin at the end of the line, then the lists.
    settle(draft)
    stream = io.StringIO()
    # Never wrapped: a comment at the end of a line belongs to all of it.
    yaml = YAML()
    yaml.width = 4096
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_commented(draft), stream)
    head = [f"Imported from {draft.what}.", "Look at what is not carried over, below, before you train."]
    text = "\n".join(
        [*(f"# {printable_caption(line)}" for line in head), stream.getvalue().rstrip(), *_lists(draft), ""]
    )
    if len(text.encode()) > MAX_BYTES:
        raise UserError("the recipe would be larger than 1 MB", where=draft.what, fix="Import it in parts.")
    return text


def _lists(draft: Draft) -> list[str]:
    lines: list[str] = []
    for heading, entries in (
        ("What means something else here:", draft.notes),
        ("Not carried over:", [str(left) for left in draft.left]),
        ("What is the default here, or is in the above by what it decided:", draft.same),
    ):
        if entries:
            lines += ["", f"# {heading}"]
        for entry in entries:
            lines += textwrap.wrap(
                printable_caption(entry), WIDTH, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False
            )
    return lines


def _tree(draft: Draft) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "data": {"sources": [{k: given.value for k, given in one.items()} for one in draft.sources]}
    }
    for setting, given in draft.settings.items():
        # A source's name may hold dots.
        *way, last = setting.split(".", 2) if setting.startswith("data.mix.") else setting.split(".")
        node = tree
        for step in way:
            node = node.setdefault(step, {})
        node[last] = given.value
    return tree


def _drop(draft: Draft, tree: dict[str, Any], error: ValidationError) -> bool:
    """Moves what the errors are about to what could not be carried over; False if no setting is meant."""
    dropped = False
    for problem in error.errors():
        place = _place(tree, problem["loc"])
        # A source that is wrong cannot just be left out: training would go on without its images.
        if place[:2] == ["data", "sources"] and len(place) > 2:
            source = draft.sources[int(place[2])]
            name = source["name"]
            raise UserError(f"{name.origin or f'source {name.value}'}: {problem['msg']}", where=draft.what)
        meant = ".".join(place)
        # The setting itself, or all of a choice that is wrong as a whole.
        below = [s for s in draft.settings if s == meant or s.startswith(f"{meant}.")]
        for setting in below if len(place) > 1 else ():
            given = draft.settings.pop(setting)
            draft.left.append(Left(given.origin, "", f"{setting} does not take it: {problem['msg']}"))
            dropped = True
    return dropped


def _place(tree: object, location: Sequence[str | int]) -> list[str]:
    """The way in the tree to what an error is about."""
    place, node = list[str](), cast(Any, tree)
    for step in location:
        # what is not in the tree is the tag of a choice
        inside = step in node if isinstance(node, dict) else isinstance(node, list) and isinstance(step, int)
        if inside:
            place.append(str(step))
            node = cast(Any, node)[step]
    return place


def _leave_out_defaults(draft: Draft, recipe: Recipe) -> None:
    """Moves the settings that have their defaults to `same`."""
    # Defaults as the recipe itself has them; it does not load without a store and a source.
    bare = {"data": {"store": "x", "sources": [{"kind": "embedded", "name": "x"}]}}
    default = _flat(Recipe.model_validate_json(json.dumps(bare)).model_dump(mode="json"))
    ours = _flat(recipe.model_dump(mode="json"))
    differing = [setting for setting in ours if default.get(setting) != ours[setting]]
    # Where one setting of a choice differs, all that were said of it stay.
    chosen = {choice for choice in _CHOICES if any(setting.startswith(f"{choice}.") for setting in differing)}
    for setting, given in list(draft.settings.items()):
        if setting == "objective.kind" or setting.rpartition(".")[0] in chosen:
            continue
        if setting in default and default[setting] == ours.get(setting):
            del draft.settings[setting]
            if " = " in given.origin:  # or else nobody said it
                draft.same.append(f"{given.origin} ({setting})")
    # The kind alone says nothing.
    if [setting for setting in draft.settings if setting.startswith("objective.")] == ["objective.kind"]:
        del draft.settings["objective.kind"]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    entries = cast("dict[str, Any]", value)
    return {k: v for name, one in entries.items() for k, v in _flat(one, f"{key}.{name}".lstrip(".")).items()}


def _commented(draft: Draft) -> CommentedMap:
    root: Any = CommentedMap({room: CommentedMap() for room in _ROOMS})
    # Order of the file: rooms, then sources behind the store, and the mix behind the sources.
    for setting, given in sorted(draft.settings.items(), key=lambda one: one[0].startswith("data.mix.")):
        *way, last = setting.split(".", 2) if setting.startswith("data.mix.") else setting.split(".")
        node = root
        for step in way:
            node = node.setdefault(step, CommentedMap())
        _put(node, last, given)
        if setting == "data.store":
            root["data"]["sources"] = CommentedSeq()
    # The sources, each as its own entry.
    for source in draft.sources:
        entry: Any = CommentedMap()
        for key, given in source.items():
            _put(entry, key, given)
        root["data"]["sources"].append(entry)
    # Rooms without a line.
    for room in [room for room in _ROOMS if not root[room]]:
        del root[room]
    return root


def _put(node: Any, key: str, given: Sourced[Plain]) -> None:
    node[key] = given.value
    if given.origin:
        node.yaml_add_eol_comment(printable_caption(given.origin), key, column=0)
