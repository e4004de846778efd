"""`terminus sample`: prompts in, numbered pictures and one sheet out."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from terminus.errors import UserError
from terminus.model.running import Running
from terminus.progress import Meter
from terminus.sampling.api import Drawing, Terminus
from terminus.sampling.canvas import Margins, Repaint
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.files import read_file
from terminus.sampling.guides import KINDS, Guide
from terminus.sampling.metadata import FORMATS, CannotHold, mark, read, save, settings_of
from terminus.sampling.origin import Task
from terminus.sampling.provenance import Identity
from terminus.sampling.repeating import check_given, difference
from terminus.sampling.settings import Settings
from terminus.sampling.sheet import sheet

_SHEET = 64
"""Pictures that a sheet shows at most."""
_COLUMNS = 8
_ANOTHER = "Choose another --out"
_STRENGTH = 0.6
_STRENGTH_ENLARGED = 0.3
_WITH_AGAIN = (
    *("--again", "--out", "--image", "--mask", "--lora", "--control", "--format", "--private", "--sign"),
    *("--compile", "--offload", "--device"),
)
"""What does not say how a picture is drawn, or names a file that it was drawn from."""


@dataclass(frozen=True)
class Start:
    """What is drawn on, if not on nothing: the options of the command line, as they are written there."""

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
        asked = [name for name in ("mask", "outpaint", "upscale") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UserError(f"--{asked[0]} and --{asked[1]}", rule="A picture is changed in one way at a time")
        needing = [*asked, *(["strength"] if self.strength is not None else [])]
        if self.image is None and needing:
            raise UserError(f"--{needing[0]} without --image", fix="Name the picture to start from")
        if self.hires is not None and self.image is not None:
            raise UserError("--hires and --image", rule="A second pass follows a picture drawn from a prompt")
        if not {"mask", "outpaint"} & {*asked}:
            for name in ("fill", "feather", "padding"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} without --mask or --outpaint", rule="It is about the part drawn anew")
        if self.outpaint is not None and self.strength not in (None, 1.0):
            raise UserError("--outpaint and --strength", rule="Beyond the edge there is nothing to keep: strength is 1")

    def edit(self, model: Terminus, settings: Settings) -> Edit | None:
        """None where pictures come from the prompt alone."""
        if self.image is None:
            return None
        components, strength = model.components, self.strength
        how = Repaint(self.fill, self.feather or 0, self.padding)
        if self.mask is not None:
            return inpainting(self.image, self.mask, 1.0 if strength is None else strength, how, settings, components)
        if self.outpaint is not None:
            return outpainting(self.image, _margins(self.outpaint), how, settings, components)
        if self.upscale is not None:
            strength = _STRENGTH_ENLARGED if strength is None else strength
            return upscaling(self.image, self.upscale, strength, settings, components)
        return image_to_image(self.image, _STRENGTH if strength is None else strength, settings, components)

    def second(self) -> Hires | None:
        """The second pass, "FACTOR" or "FACTOR:STRENGTH"."""
        if self.hires is None:
            return None
        try:
            numbers = [float(part) for part in self.hires.split(":")]
            factor, strength = numbers if len(numbers) == 2 else (*numbers, Hires.strength)
        except ValueError:
            raise UserError(
                f"--hires {self.hires}", rule="It is FACTOR or FACTOR:STRENGTH", fix="Try 1.5:0.5"
            ) from None
        return Hires(factor, strength)


@dataclass(frozen=True)
class Output:
    """Where pictures go, and what they say of themselves."""

    folder: Path
    format: str = "png"
    private: bool = False
    """Leave prompt and settings out of the files."""
    sign: str | None = None
    """ "CERTIFICATES,KEY", two PEM files, for content credentials."""

    def __post_init__(self) -> None:
        if f".{self.format}" not in FORMATS:
            raise UserError(f"--format {self.format}", rule=f"Known: {', '.join(name[1:] for name in FORMATS)}")

    def identity(self) -> Identity | None:
        """Who signs; None if nobody does."""
        if self.sign is None:
            return None
        certificates, comma, key = self.sign.partition(",")
        if not comma:
            raise UserError(f"--sign {self.sign}", rule="It is CERTIFICATES,KEY: two PEM files")
        return Identity.load(Path(certificates), Path(key))


@dataclass(frozen=True)
class Drawer:
    """The model, what steers it, and how it runs: the options of the command line, as they are written there."""

    model: str
    loras: Sequence[str] = ()
    controls: Sequence[str] = ()
    device: str = "auto"
    running: Running | None = None

    def load(self, console: Console) -> tuple[Terminus, list[Guide]]:
        """Its files are looked for before the model is read."""
        weighted, guides = [_lora(text) for text in self.loras], [_guide(text) for text in self.controls]
        with console.status(Text(f"Loading {self.model}")):
            loaded = Terminus.load(self.model, self.device, self.running)
            for path, weight in weighted:
                loaded.adapters.attach(path, weight)
        return loaded, guides


def sample(
    drawer: Drawer,
    output: Output,
    prompts: Sequence[str],
    negative: str = "",
    seed: int = 0,
    count: int = 1,
    settings: Settings | None = None,
    start: Start | None = None,
) -> None:
    """Draws `count` pictures per prompt and prints their paths."""
    console = Console(stderr=True, highlight=False)
    settings, start, out = settings or Settings(), start or Start(), output.folder
    if not prompts:
        raise UserError("Missing option '--prompt'", fix="Say what to draw; or --again PICTURE draws a picture again")
    if negative and settings.guidance == 1.0:
        console.print("The negative prompt has no effect at guidance 1.")
    _check_folder(out)
    signer, hires = output.identity(), start.second()
    parent = read_file(start.image) if start.image is not None else None
    loaded, guides = drawer.load(console)
    edit = start.edit(loaded, settings)
    stream = loaded.stream(
        prompts, negative, seed=seed, count=count, settings=settings, edit=edit, hires=hires, guides=guides
    )
    written = _Written(output, signer, parent, console)
    total = loaded.steps(settings, edit, hires) * len(prompts) * count
    try:
        with Meter(console, "sample", total, unit="steps") as meter:
            for drawing in stream:
                _make_folder(out)  # a first step says that the model can draw what is asked; before, nothing is written
                meter.advance(len(drawing.requests))
                if drawing.finished:
                    written.add(drawing)
    except KeyboardInterrupt:
        done = Text(f"Stopped: {written.count} of {len(prompts) * count} pictures are in {out}.")
        console.print(done, soft_wrap=True)
        raise
    columns = count if 1 < count <= _COLUMNS else None  # a row per prompt, where that is not too wide
    written.finish(columns, "text2img" if edit is None else "img2img")


def again(
    drawer: Drawer,
    output: Output,
    picture: Path,
    *,
    image: Path | None = None,
    mask: Path | None = None,
    given: Sequence[str] = (),
) -> None:
    """Draws a picture of ours again, from its own words, and prints the new one's path; `given` are all the options.

    Whether its pixels are those of the file is said in one line.
    """
    if other := [name for name in given if name.startswith("--") and name not in _WITH_AGAIN]:
        rule = "A picture is drawn again as it says itself; only the files that it names are given, as they were"
        raise UserError(f"--again and {', '.join(other)}", rule=rule, fix="Leave out either")
    console = Console(stderr=True, highlight=False)
    origin = settings_of(read(picture), str(picture))
    check_given(origin, image, mask)
    _check_folder(output.folder)
    signer, parent = output.identity(), None if image is None else read_file(image)
    if origin.precision == "fp32":  # which networks held in bf16, as they are on a GPU, cannot be asked for
        drawer = replace(drawer, running=replace(drawer.running or Running(), precision="fp32"))
    loaded, guides = drawer.load(console)
    with console.status(Text(f"Drawing {picture} again")):
        drawn = loaded.again(picture, image, mask, guides)
    _make_folder(output.folder)
    _Written(output, signer, parent, console).one(drawn, origin.seed)
    gap = difference(drawn, picture)
    said = f"Every pixel is that of {picture}." if gap is None else f"These are not the pixels of {picture}: {gap}."
    console.print(Text(said), soft_wrap=True)


class _Written:
    """The pictures in the folder: numbered, printed, and remembered for the sheet."""

    def __init__(self, output: Output, signer: Identity | None, parent: bytes | None, console: Console) -> None:
        self.output, self.signer, self.parent, self.console = output, signer, parent, console
        self.count = 0
        self.shown: list[tuple[Image.Image, str]] = []
        self.numbers: Iterator[int] | None = None

    def add(self, drawing: Drawing) -> None:
        """Of one batch."""
        for picture, request in zip(drawing.pictures(), drawing.requests, strict=True):
            self.one(picture, request.seed)
            if len(self.shown) < _SHEET:
                self.shown.append((picture, f"{request.prompt} · {request.seed}"))

    def one(self, picture: Image.Image, seed: int) -> None:
        """Under the next number."""
        numbers = self.numbers = self.numbers or itertools.count(_next_number(self.output.folder))
        self._save(picture, (f"{number:05d}-{seed}" for number in numbers), self.parent, self.output.format)
        self.count += 1

    def finish(self, columns: int | None, task: Task) -> None:
        """A sheet of several."""
        if len(self.shown) > 1:
            page = sheet([picture for picture, _ in self.shown], [caption for _, caption in self.shown], columns)
            mark(page, task)
            stems = ("samples" if number == 1 else f"samples-{number}" for number in itertools.count(1))
            self._save(page, stems, None, "png")

    def _save(self, picture: Image.Image, stems: Iterator[str], parent: bytes | None, suffix: str) -> None:
        """Under the first name that is free; another command may draw into the same folder."""
        for stem in stems:
            path = self.output.folder / f"{stem}.{suffix}"
            try:
                save(picture, path, private=self.output.private, signer=self.signer, parent=parent)
            except FileExistsError:
                continue
            except CannotHold as error:  # what has been drawn is not lost
                said = UserError(error.what, where=str(path), rule=error.rule, fix="It is saved as PNG")
                self.console.print(Text(str(said)), soft_wrap=True)
                return self._save(picture, itertools.chain([stem], stems), parent, "png")
            except OSError as error:
                raise UserError(
                    f"This picture cannot be written ({error.strerror or error})",
                    where=str(path),
                    rule="Those whose names were printed before are whole",
                    fix="Make room, or choose another --out, and draw the others again",
                ) from error
            print(path, flush=True)
            return None
        raise AssertionError("names do not end")


def _lora(text: str) -> tuple[Path, float]:
    """ "FILE" or "FILE:WEIGHT"; a file's own name may hold a colon."""
    path, colon, weight = text.rpartition(":")
    if not colon or _exists(text):
        return _existing(text), 1.0
    try:
        return _existing(path), float(weight)
    except ValueError:
        raise UserError(f"--lora {text}", rule="It is FILE[:WEIGHT]", fix="For example style.safetensors:0.8") from None


def _guide(text: str) -> Guide:
    try:
        kind, folder, image, scale = text.split(":") if text.count(":") == 3 else (*text.split(":"), "1")
        strength = float(scale)
    except ValueError:
        rule = f"It is KIND:FOLDER:IMAGE[:SCALE], and KIND is {', '.join(KINDS)}"
        raise UserError(f"--control {text}", rule=rule) from None
    return Guide(kind, _existing(folder), image, strength)


def _existing(path: str) -> Path:
    """A mistyped name should not wait for a model of gigabytes."""
    if not _exists(path):
        raise UserError("Nothing is here", where=path, fix="Check the name")
    return Path(path)


def _exists(path: str | Path) -> bool:
    return os.path.exists(os.path.expanduser(path))  # where pathlib raises: a name too long, a user not known


def _margins(text: str) -> Margins:
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){3}", text):
        raise UserError(f"--outpaint {text}", rule="It is LEFT,TOP,RIGHT,BOTTOM in pixels", fix="For example 0,0,256,0")
    return Margins(*(int(part) for part in text.split(",")))


def _check_folder(out: Path) -> None:
    """Before the model is loaded: minutes of drawing must not end in a folder that cannot be written."""
    there = next(folder for folder in (out, *out.absolute().parents) if _exists(folder))
    if not there.is_dir():
        raise UserError(f"This folder cannot be made ({there} is a file)", where=str(out), fix=_ANOTHER)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError("This folder cannot be written", where=str(out), fix=_ANOTHER)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"This folder cannot be made ({error.strerror})", where=str(out), fix=_ANOTHER) from error


def _next_number(out: Path) -> int:
    numbers = [int(match[1]) for path in out.iterdir() if (match := re.match(r"(\d{5,9})-", path.name))]
    return max(numbers, default=0) + 1
