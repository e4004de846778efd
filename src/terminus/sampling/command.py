"""`terminus sample`: prompts in, numbered images and one sheet out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from terminus.errors import UserError
from terminus.model.execution import running
from terminus.progress import Meter, waiting
from terminus.runtime import Precision
from terminus.sampling.api import SamplingStep, Terminus
from terminus.sampling.arguments import ANOTHER, Drawer, Output, Start, check_again, check_folder, check_prompts
from terminus.sampling.canvas import Margins, Repaint
from terminus.sampling.controls import ControlInput
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.files import read_file
from terminus.sampling.generation_metadata import Task
from terminus.sampling.metadata import CannotHold, mark, read_image_metadata, save_image, settings_of
from terminus.sampling.provenance import Identity
from terminus.sampling.repeating import check_given, difference
from terminus.sampling.settings import Settings
from terminus.sampling.sheet import sheet

_SHEET = 64
"""Images that a sheet shows at most."""
_COLUMNS = 8
_STRENGTH = 0.6


def edit_of(start: Start, model: Terminus, settings: Settings) -> Edit | None:
    """The edit that the options ask for, for this model; None where images come from the prompt alone."""
    if start.image is None:
        return None
    components, strength = model.components, start.strength
    how = Repaint(start.fill, start.feather or 0, start.padding)
    if start.mask is not None:
        return inpainting(start.image, start.mask, 1.0 if strength is None else strength, how, settings, components)
    margins = start.margins()
    if margins is not None:
        return outpainting(start.image, Margins(*margins), how, settings, components)
    if start.upscale is not None:
        return upscaling(start.image, start.upscale, strength, settings, components)
    return image_to_image(start.image, _STRENGTH if strength is None else strength, settings, components)


def _identity(output: Output) -> Identity | None:
    signer = output.signer()
    return None if signer is None else Identity.load(*signer)


def _load(drawer: Drawer, console: Console, precision: Precision | None = None) -> tuple[Terminus, list[ControlInput]]:
    """The files that steer it are looked for before the model is read."""
    weighted = drawer.weighted()
    control_inputs = [ControlInput(one.kind, one.source, one.image, one.scale) for one in drawer.steering()]
    how = replace(running(drawer.compile, drawer.offload), precision=precision)
    with waiting(console, f"loading {drawer.model}"):
        loaded = Terminus.load(drawer.model, drawer.device, how)
        for path, weight in weighted:
            loaded.adapters.attach(path, weight)
    return loaded, control_inputs


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
    """Draws `count` images per prompt and prints their paths."""
    console = Console(stderr=True, highlight=False)
    settings, start, out = settings or Settings(), start or Start(), output.folder
    # What is wrong with the words, before a network is loaded.
    check_prompts(prompts)
    if negative and settings.guidance == 1.0:
        console.print("The negative prompt has no effect at guidance 1.")
    check_folder(out)
    signer, second = _identity(output), start.second_pass()
    hires = None if second is None else Hires(*second)
    # The bytes of the image to start from: content credentials name it as the parent.
    parent = read_file(start.image) if start.image is not None else None
    # The model and the edit, and their images as a stream.
    loaded, control_inputs = _load(drawer, console)
    edit = edit_of(start, loaded, settings)
    stream = loaded.stream(
        prompts,
        negative,
        seed=seed,
        count=count,
        settings=settings,
        edit=edit,
        hires=hires,
        control_inputs=control_inputs,
    )
    written = _Written(output, signer, parent, console)
    total = loaded.steps(settings, edit, hires) * len(prompts) * count
    # Each image is written as soon as it is finished.
    try:
        with Meter(console, "sample", total, unit="steps") as meter:
            for drawing in stream:
                _make_folder(out)  # a first step says that the model can draw what is asked; before, nothing is written
                meter.advance(len(drawing.requests))
                if drawing.finished:
                    written.add(drawing)
    except KeyboardInterrupt:
        done = Text(f"Stopped: {written.count} of {len(prompts) * count} images are in {out}.")
        console.print(done, soft_wrap=True)
        raise
    columns = count if 1 < count <= _COLUMNS else None  # a row per prompt, where that is not too wide
    written.finish(columns, "text2img" if edit is None else "img2img")


def again(
    drawer: Drawer,
    output: Output,
    source: Path,
    *,
    image: Path | None = None,
    mask: Path | None = None,
    given: Sequence[str] = (),
) -> None:
    """Draws an image of ours again, from its own words, and prints the new one's path; `given` are all the options.

    Whether its pixels are those of the file is said in one line.
    """
    # What the image says of itself, and whether its files are given.
    check_again(given)
    console = Console(stderr=True, highlight=False)
    generation = settings_of(read_image_metadata(source), str(source))
    check_given(generation, image, mask)
    check_folder(output.folder)
    signer, parent = _identity(output), None if image is None else read_file(image)
    # Networks held in bf16, as they are on a GPU, cannot draw what was drawn in fp32.
    loaded, control_inputs = _load(drawer, console, "fp32" if generation.precision == "fp32" else None)
    # Drawn, written, and compared with the file.
    with waiting(console, f"drawing {source} again"):
        drawn = loaded.again(source, image, mask, control_inputs)
    _make_folder(output.folder)
    _Written(output, signer, parent, console).one(drawn, generation.seed)
    gap = difference(drawn, source)
    said = f"Every pixel is that of {source}." if gap is None else f"These are not the pixels of {source}: {gap}."
    console.print(Text(said), soft_wrap=True)


class _Written:
    """The images in the folder: numbered, printed, and remembered for the sheet."""

    def __init__(self, output: Output, signer: Identity | None, parent: bytes | None, console: Console) -> None:
        self.output, self.signer, self.parent, self.console = output, signer, parent, console
        self.count = 0
        self.shown: list[tuple[Image.Image, str]] = []
        self.numbers: Iterator[int] | None = None

    def add(self, drawing: SamplingStep) -> None:
        """Writes the images of one batch."""
        for image, request in zip(drawing.images(), drawing.requests, strict=True):
            self.one(image, request.seed)
            if len(self.shown) < _SHEET:
                self.shown.append((image, f"{request.prompt} · {request.seed}"))

    def one(self, image: Image.Image, seed: int) -> None:
        """Writes an image under the next number."""
        # Looked up with the first image and not before: others may have drawn into the folder meanwhile.
        numbers = self.numbers = self.numbers or itertools.count(_next_number(self.output.folder))
        self._save(image, (f"{number:05d}-{seed}" for number in numbers), self.parent, self.output.format)
        self.count += 1

    def finish(self, columns: int | None, task: Task) -> None:
        """Saves a sheet of the images, where there are several."""
        if len(self.shown) > 1:
            page = sheet([image for image, _ in self.shown], [caption for _, caption in self.shown], columns)
            mark(page, task)
            stems = ("samples" if number == 1 else f"samples-{number}" for number in itertools.count(1))
            self._save(page, stems, None, "png")

    def _save(self, image: Image.Image, stems: Iterator[str], parent: bytes | None, suffix: str) -> None:
        """Under the first name that is free; another command may draw into the same folder."""
        for stem in stems:
            path = self.output.folder / f"{stem}.{suffix}"
            try:
                save_image(image, path, private=self.output.private, signer=self.signer, parent=parent)
            except FileExistsError:
                continue
            except CannotHold as error:  # what has been drawn is not lost
                said = UserError(error.what, where=str(path), rule=error.rule, fix="It is saved as PNG")
                self.console.print(Text(str(said)), soft_wrap=True)
                return self._save(image, itertools.chain([stem], stems), parent, "png")
            except OSError as error:
                raise UserError(
                    f"This image cannot be written ({error.strerror or error})",
                    where=str(path),
                    rule="Those whose names were printed before are whole",
                    fix="Make room, or choose another --out, and draw the others again",
                ) from error
            print(path, flush=True)
            return None
        raise AssertionError("names do not end")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"This folder cannot be made ({error.strerror})", where=str(out), fix=ANOTHER) from error


def _next_number(out: Path) -> int:
    numbers = [int(match[1]) for path in out.iterdir() if (match := re.match(r"(\d{5,9})-", path.name))]
    return max(numbers, default=0) + 1
