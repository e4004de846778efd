"""Settings files of strangers: TOML and JSON with limits, and each key read under its own type or not at all.

`Keys` remembers what was asked for, so that a key nobody knows can be named in the end and is never lost.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Generic, NamedTuple, NoReturn, TypeVar, cast

from terminus.data.sources.printable import printable_caption
from terminus.errors import UserError

MAX_BYTES = 4 << 20
MAX_DEPTH = 16
MAX_VALUES = 5000
"""Of one file, keys and entries of lists counted alike; a settings file of a person has a few hundred."""
T = TypeVar("T")


class Sourced(NamedTuple, Generic[T]):
    """A value, and which key said it."""

    value: T
    origin: str
    """`train_batch_size = 4`, or that the key is not set and what it is then; one line for a comment."""


class Keys:
    """One object of a settings file. Getters raise `UserError` with file and key where a value is of another type."""

    def __init__(self, values: Mapping[str, object], file: str, place: str = "", spoken: bool = False) -> None:
        self.values, self.file, self.place = values, file, place
        self.spoken = spoken
        """Whether the trainer takes "4" and "true" for a number and a flag, as from a command line."""
        self._read: set[str] = set()

    def name(self, key: str) -> str:
        """The key with the way to it: `datasets[0].subsets[1].image_dir`."""
        return printable_caption(f"{self.place}.{key}" if self.place else key)

    def unset(self, key: str, value: T) -> Sourced[T]:
        """The trainer's own default, which holds where the key is not set."""
        return Sourced(value, f"{key} is not set, which is {shown(value)} there")

    def raw(self, key: str) -> Sourced[object] | None:
        """The value whatever it is; null is not set."""
        self._read.add(key)
        value = self.values.get(key)
        return None if value is None else Sourced(value, f"{self.name(key)} = {shown(value, key)}")

    def text(self, key: str) -> Sourced[str] | None:
        """A text that is not empty."""
        given = self.raw(key)
        if given is None or given.value == "":
            return None
        if not isinstance(given.value, str):
            self.wrong(key, "a text")
        return Sourced(given.value, given.origin)

    def number(self, key: str) -> Sourced[float] | None:
        """A finite number."""
        given = self._spoken(key, float)
        if given is None:
            return None
        # bool is an int in Python, and true is no number here.
        if isinstance(given.value, bool) or not isinstance(given.value, int | float):
            self.wrong(key, "a number")
        try:
            value = float(given.value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            self.wrong(key, "a finite number")
        return Sourced(value, given.origin)

    def whole(self, key: str) -> Sourced[int] | None:
        """A whole number of at most 18 digits."""
        given = self.number(key)
        if given is None:
            return None
        if not given.value.is_integer() or abs(given.value) >= 1e18:
            self.wrong(key, "a whole number")
        return Sourced(int(given.value), given.origin)

    def flag(self, key: str) -> Sourced[bool] | None:
        """True or false."""
        # These words count only where the trainer takes texts for flags.
        given = self._spoken(key, {"true": True, "false": False, "1": True, "0": False}.__getitem__)
        if given is None:
            return None
        if not isinstance(given.value, bool):
            self.wrong(key, "true or false")
        return Sourced(given.value, given.origin)

    def is_on(self, key: str) -> Sourced[bool] | None:
        """The flag if it is true; None where it is false or not set."""
        given = self.flag(key)
        return given if given is not None and given.value else None

    def texts(self, key: str) -> list[str]:
        """A list of texts, or one text; empty where the key is not set."""
        given = self.raw(key)
        if given is None:
            return []
        several = cast("list[object]", given.value) if isinstance(given.value, list) else [given.value]
        found = [one for one in several if isinstance(one, str)]
        if len(found) < len(several):
            self.wrong(key, "a text, or a list of texts")
        return found

    def table(self, key: str) -> Keys | None:
        """The object under a key."""
        given = self.raw(key)
        return None if given is None else self._keys(given.value, self.name(key))

    def tables(self, key: str) -> list[Keys]:
        """The list of objects under a key."""
        given = self.raw(key)
        if given is None:
            return []
        if not isinstance(given.value, list):
            self.wrong(key, "a list of objects")
        entries = cast("list[object]", given.value)
        return [self._keys(entry, f"{self.name(key)}[{index}]") for index, entry in enumerate(entries)]

    def rest(self) -> Iterator[str]:
        """The keys that nothing has asked for; null ones are not set."""
        return (key for key, value in self.values.items() if key not in self._read and value is not None)

    def wrong(self, key: str, wanted: str) -> NoReturn:
        """Raises the `UserError` that says what the value should have been."""
        raise UserError(
            f"{self.name(key)} is {shown(self.values.get(key), key)}, and should be {wanted}",
            where=self.file,
            fix="Correct the file, or leave the key out.",
        )

    def _spoken(self, key: str, read: Callable[[str], object]) -> Sourced[object] | None:
        """The value, or what its text stands for where the trainer takes texts; an empty one is not set."""
        given = self.raw(key)
        if given is None or not self.spoken or not isinstance(given.value, str):
            return given
        # What cannot be read so stays a text, and the caller names it.
        word = given.value.strip().lower()
        try:
            return Sourced(read(word), given.origin) if word not in ("", "none", "null") else None
        except (ValueError, KeyError):
            return given

    def _keys(self, value: object, place: str) -> Keys:
        return Keys(_object(value, self.file, place), self.file, place, self.spoken)


def read_toml(path: Path) -> Keys:
    """The root of a TOML file. `UserError` if it is none, or too large, deep or full."""
    try:
        found: object = tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "TOML", error) from None
    return Keys(_bounded(found, path), str(path))


def read_json_settings(path: Path) -> object:
    """The value of a JSON file. `UserError` if it is none, says a key twice, or is too large, deep or full."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        # JSON allows a key twice, and Python keeps the last one without a word.
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
            raise ValueError(f"the key {printable_caption(twice[:60])} is there twice")
        return found

    def refused(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON number")

    try:
        found: object = json.loads(_text(path), object_pairs_hook=once, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "JSON", error) from None
    _bounded({"": found}, path)
    return found


def root(value: object, path: Path) -> Keys:
    """The object that a JSON file is. `UserError` if it is something else."""
    return Keys(_object(value, str(path), ""), str(path))


def shown(value: object, key: str = "") -> str:
    """A value in at most 60 harmless characters; of what is secret only that it is set."""
    if _is_secret(key):
        return "(set, and not repeated here)"
    # Before it is shown: one line, no address with a password in it, no control characters.
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, float) else f"{value:g}"
    if "://" in text and "@" in text:
        return "(an address with a user, not repeated here)"
    text = printable_caption(" ".join(text.split()))
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(path: str, file: str) -> str:
    """A path of a settings file, which is relative to that file, as it is said from here; a foreign one as it is."""
    # Of another place or system: nothing here can make it relative.
    if "://" in path or (PureWindowsPath(path).drive and os.name != "nt"):
        return path
    found = Path(os.path.normpath(Path(file).parent / Path(path).expanduser())).absolute()
    return str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else str(found)


def _is_secret(key: str) -> bool:
    words = (
        "secret",
        "password",
        "api_key",
        "access_key",
        "hub_token",
        "session_token",
        "huggingface_token",
        "webhook",
    )
    return any(word in key.lower() for word in words)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"this file cannot be read ({error.strerror})", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise UserError(f"this file is larger than {MAX_BYTES >> 20} MiB", where=str(path), rule="Settings are small")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError("the text is not UTF-8", where=f"{path}:{line}", fix="Save it again as UTF-8.") from None


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    reason = "it is nested too deep" if isinstance(error, RecursionError) else printable_caption(str(error)[:200])
    return UserError(f"this is not {kind} that can be read: {reason}", where=str(path))


def _object(value: object, file: str, place: str) -> dict[str, object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    raise UserError(
        f"{place or 'the file'} is {shown(value)}, and should be an object with keys",
        where=file,
        fix="Correct the file.",
    )


def _bounded(value: object, path: Path) -> dict[str, object]:
    """The object itself, if it is neither too deep nor too full."""
    # Level by level instead of by recursion, which a deep file would exhaust.
    level, count = [value], 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType]
        level = [entry for several in cast("list[list[object]]", inner) for entry in several]
        if count > MAX_VALUES:
            raise UserError(f"more than {MAX_VALUES} values", where=str(path), rule="Settings are few")
    if level:
        raise UserError(f"values are nested more than {MAX_DEPTH} deep", where=str(path))
    return cast("dict[str, object]", value)
