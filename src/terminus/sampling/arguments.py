"""The options of `terminus sample`, checked before torch is imported: a wrong word should not wait for a network.

What can be said of an option without a model is said here; the rest (a size that the model cannot draw, a file that is
not what its name says) by what reads the model and the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terminus.errors import UserError
from terminus.model.choices import check_choice, check_running
from terminus.model.naming import find_whole
from terminus.sampling.limits import (
    CONTROL_KINDS,
    HIRES_STRENGTH,
    check_factor,
    check_hires,
    check_known,
    check_margins,
    check_repaint,
    check_strength,
)

IMAGE_FORMATS = ("png", "jpg", "jpeg", "webp")
"""The suffixes in `metadata.FORMATS`, in its order."""
ANOTHER = "Choose another --out"
_WITH_AGAIN = (
    *("--again", "--out", "--image", "--mask", "--lora", "--control", "--format", "--private", "--sign"),
    *("--compile", "--offload", "--device"),
)
"""Options that do not say how an image is drawn, or that name a file it was drawn from."""


@dataclass(frozen=True)
class Start:
    """The image to start from, if any: the options of the command line, as they are written there."""

    image: Path | None = None
    mask: Path | None = None
    outpaint: str | None = None
    upscale: float | None = None
    hires: str | None = None
    strength: float | None = None
    fill: str | None = None
    feather: int | None = None
    padding: int | None = None

    def __post_init__(self) -> None:
        # One change at a time, and an image to change.
        asked = self._given("mask", "outpaint", "upscale")
        if len(asked) > 1:
            raise UserError(
                f"--{asked[0]} cannot be combined with --{asked[1]}", rule="An image is changed in one way at a time"
            )
        needing = [*asked, *self._given("strength")]
        if self.image is None and needing:
            raise UserError(f"--{needing[0]} without --image", fix="Name the image to start from")
        if self.hires is not None and self.image is not None:
            raise UserError(
                "--hires cannot be combined with --image", rule="A second pass follows an image drawn from a prompt"
            )
        if self.mask is None and self.outpaint is None:
            self._refuse_repaint_options()
        if self.outpaint is not None and self.strength not in (None, 1.0):
            raise UserError(
                "--outpaint cannot be combined with --strength",
                rule="Beyond the edge there is nothing to keep: strength is 1",
            )
        self._check_values()

    def _refuse_repaint_options(self) -> None:
        given = self._given("fill", "feather", "padding")
        if given:
            raise UserError(f"--{given[0]} without --mask or --outpaint", rule="It is about the part drawn anew")

    def _given(self, *names: str) -> list[str]:
        """Those of these options that are set."""
        return [name for name in names if getattr(self, name) is not None]

    def _check_values(self) -> None:
        if self.strength is not None:
            check_strength(self.strength)
        if self.upscale is not None:
            check_factor(self.upscale)
        check_repaint(self.fill, self.feather or 0, self.padding)
        self.second_pass()
        self.margins()
        for path in (self.image, self.mask):
            if path is not None:
                existing(path)

    def margins(self) -> tuple[int, int, int, int] | None:
        """Pixels to add: (left, top, right, bottom)."""
        if self.outpaint is None:
            return None
        if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){3}", self.outpaint):
            rule = "The form is LEFT,TOP,RIGHT,BOTTOM in pixels"
            raise UserError(f"--outpaint {self.outpaint} cannot be read", rule=rule, fix="For example 0,0,256,0")
        left, top, right, bottom = (int(part) for part in self.outpaint.split(","))
        check_margins(left, top, right, bottom)
        return left, top, right, bottom

    def second_pass(self) -> tuple[float, float] | None:
        """(factor, strength) of the second pass, from "FACTOR" or "FACTOR:STRENGTH"."""
        if self.hires is None:
            return None
        try:
            numbers = [float(part) for part in self.hires.split(":")]
            factor, strength = numbers if len(numbers) == 2 else (*numbers, HIRES_STRENGTH)
        except ValueError:
            rule, fix = "The form is FACTOR or FACTOR:STRENGTH", "Try 1.5:0.5"
            raise UserError(f"--hires {self.hires} cannot be read", rule=rule, fix=fix) from None
        check_hires(factor, strength)
        return factor, strength


@dataclass(frozen=True)
class Output:
    """The place where images go, and the marks they carry."""

    folder: Path
    format: str = "png"
    private: bool = False
    """Leave prompt and settings out of the files."""
    sign: str | None = None
    """ "CERTIFICATES,KEY", two PEM files, for content credentials."""

    def __post_init__(self) -> None:
        check_choice("--format", self.format, IMAGE_FORMATS)
        self.signer()

    def signer(self) -> tuple[Path, Path] | None:
        """(Certificates, key) of who signs; None if nobody does."""
        if self.sign is None:
            return None
        certificates, comma, key = self.sign.partition(",")
        if not comma:
            raise UserError(f"--sign {self.sign} cannot be read", rule="The form is CERTIFICATES,KEY: two PEM files")
        return existing(certificates), existing(key)


@dataclass(frozen=True)
class ControlArgument:
    """A `--control`, taken apart."""

    kind: str
    source: Path
    image: str
    scale: float


@dataclass(frozen=True)
class Drawer:
    """The model, what steers it, and how it runs: the options of the command line, as they are written there."""

    model: str
    loras: Sequence[str] = ()
    controls: Sequence[str] = ()
    device: str = "auto"
    compile: str = "off"
    offload: str = "none"

    def check(self) -> None:
        """UserError for words that are wrong and for files that are not there."""
        check_running(self.compile, self.offload, self.device)
        self.weighted()
        self.steering()
        find_whole(self.model)

    def weighted(self) -> list[tuple[Path, float]]:
        """The adapters, each with its weight."""
        return [_lora(text) for text in self.loras]

    def steering(self) -> list[ControlArgument]:
        """The controls, taken apart."""
        return [_control(text) for text in self.controls]


def check_again(given: Sequence[str]) -> None:
    """UserError for an option beside `--again` that says how an image is drawn: it says that itself."""
    if other := [name for name in given if name.startswith("--") and name not in _WITH_AGAIN]:
        rule = "An image is drawn again as it says itself; only the files that it names are given, as they were"
        raise UserError(f"--again cannot be combined with {', '.join(other)}", rule=rule, fix="Leave out either")


def check_prompts(prompts: Sequence[str]) -> None:
    """UserError where nothing is asked for."""
    if not prompts:
        raise UserError("Missing option '--prompt'", fix="Say what to draw; or --again IMAGE draws an image again")


def check_folder(out: Path) -> None:
    """UserError for a folder that cannot be written: minutes of work must not end there."""
    # The nearest folder that exists must take those that are missing.
    there = next(folder for folder in (out, *out.absolute().parents) if _exists(folder))
    if not there.is_dir():
        raise UserError(f"This folder cannot be made ({there} is a file)", where=str(out), fix=ANOTHER)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError("This folder cannot be written", where=str(out), fix=ANOTHER)


def existing(path: str | Path) -> Path:
    """A mistyped name should not wait for a model of gigabytes."""
    if not _exists(path):
        raise UserError("File not found", where=str(path), fix="Check the name")
    return Path(path)


def _lora(text: str) -> tuple[Path, float]:
    """ "FILE" or "FILE:WEIGHT"; a file's own name may hold a colon."""
    path, colon, weight = text.rpartition(":")
    if not colon or _exists(text):
        return existing(text), 1.0
    try:
        return existing(path), float(weight)
    except ValueError:
        raise UserError(
            f"--lora {text} cannot be read", rule="The form is FILE[:WEIGHT]", fix="For example style.safetensors:0.8"
        ) from None


def _control(text: str) -> ControlArgument:
    try:
        # The scale may be missing.
        kind, folder, image, scale = text.split(":") if text.count(":") == 3 else (*text.split(":"), "1")
        strength = float(scale)
    except ValueError:
        rule = f"The form is KIND:FOLDER:IMAGE[:SCALE], and KIND is {', '.join(CONTROL_KINDS)}"
        raise UserError(f"--control {text} cannot be read", rule=rule) from None
    source = existing(folder)
    check_known("control of kind", kind, CONTROL_KINDS)
    return ControlArgument(kind, source, str(existing(image)), strength)


def _exists(path: str | Path) -> bool:
    return os.path.exists(os.path.expanduser(path))  # where pathlib raises: a name too long, a user not known
