"""`Terminus`: a loaded model that draws. The command line and users' scripts draw through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size
from terminus.errors import UserError
from terminus.model.adapters import Adapters
from terminus.model.components import Components, load_components
from terminus.model.execution import Running, prepare_for_inference
from terminus.model.weights import at_home, model_name, resolve, weight_files
from terminus.sampling.canvas import ImageSource, Margins, Pixels, Repaint, enlarge, scaled
from terminus.sampling.controls import ControlInput, ControlInputs, LoadedControls
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.files import sha256
from terminus.sampling.generation_metadata import AdapterUse, ControlUse, Enlargement, GenerationMetadata, Variation
from terminus.sampling.metadata import attach_metadata, read_image_metadata, settings_of
from terminus.sampling.network import prompt_chunks
from terminus.sampling.repeating import check_same, recorded_request
from terminus.sampling.requests import requests_for
from terminus.sampling.settings import ImageRequest, Settings
from terminus.sampling.shapes import Aspect, parse_size
from terminus.sampling.tasks import generate, to_bytes, visited_timesteps

_BATCH_PIXELS = 4 * 1024**2
"""Drawn at once: four SDXL images keep a GPU busy, more would only need more memory."""
_BATCH_IMAGES = 64


class How(TypedDict, total=False):
    """The keyword arguments of every task; what is left out is the default of `Settings`."""

    steps: int
    guidance: float
    rescale: float | None
    interval: tuple[float, float]
    solver: str
    spacing: str
    size: str | Size | Aspect | None
    variation: float
    conditioning: MicroConditioning | None
    negative_conditioning: MicroConditioning | None
    precision: runtime.Precision | None
    control_inputs: Sequence[ControlInput]


@final
@dataclass(frozen=True, eq=False)
class _Task:
    """The settings of a batch, fixed at its first step: the files of a control and the adapters of a model may
    change."""

    settings: Settings
    control_inputs: LoadedControls
    edit: Edit | None = None
    controls: tuple[ControlUse, ...] = ()
    adapters: tuple[AdapterUse, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class SamplingStep:
    """A batch of images after one step."""

    requests: Sequence[ImageRequest]
    step: int
    """Steps done, from 1."""
    steps: int
    x0: Float[Tensor, "batch c h w"]
    """The model's estimate of the images' latents; after the last step, the latents themselves."""
    _model: Terminus
    _task: _Task

    @property
    def finished(self) -> bool:
        return self.step == self.steps

    def images(self) -> list[Image.Image]:
        """RGB, one per request; before the last step, previews. Finished ones carry their metadata in `info`."""
        components = self._model.components
        if not torch.isfinite(self.x0).all():
            raise UserError(
                "The model produced NaN or infinity",
                where=self._model.name,
                rule="An image is made of finite numbers",
                fix="Lower the guidance; if that does not help, the weights are damaged",
            )
        drawn, edit = to_bytes(components, self.x0), self._task.edit
        images = [Image.fromarray(one.numpy()) for one in (edit.canvas.finish(drawn) if edit else drawn)]
        if self.finished:
            for image, request in zip(images, self.requests, strict=True):
                attach_metadata(image, self._generation(request, Size(image.height, image.width)))
        return images

    def _generation(self, request: ImageRequest, size: Size) -> GenerationMetadata:
        components, task, settings = self._model.components, self._task, self._task.settings
        generation = GenerationMetadata(
            prompt=request.prompt,
            negative=request.negative,
            seed=request.seed,
            steps=settings.steps,
            solver=settings.solver,
            guidance=settings.guidance,
            rescale=settings.rescale_for(components),
            size=size,
            precision=settings.precision_for(components),
            model=self._model.name,
            model_hash=self._model.hash,
            schedule=components.record.schedule,
            spacing=settings.spacing,
            interval=None if settings.interval == (0.0, 1.0) else settings.interval,
            template=request.template,
            expanded_from=request.expanded_from,
            variation=Variation(request.variation, settings.variation) if settings.variation else None,
            conditioning=settings.conditioning,
            negative_conditioning=settings.negative_conditioning,
            adapters=task.adapters,
            controls=task.controls,
        )
        return replace(generation, **task.edit.facts) if task.edit else generation


@final
class Terminus:
    """A model on its device, ready to draw. Make one with `Terminus.load`.

    Every task takes the keyword arguments of `How`. Every prompt is drawn with the seeds `seed`, `seed` + 1, ... (or
    with each of the listed seeds), `count` images per prompt, in the order of the prompts; with a `variation`, all of
    a prompt's images share the seed and differ by the variation. `adapters` holds LoRA files, which act until they
    are taken off. UserError for what cannot be drawn.
    """

    def __init__(self, components: Components, path: Path, precision: runtime.Precision | None = None) -> None:
        self.components = components
        self._precision: runtime.Precision | None = precision
        self.adapters = Adapters(components)
        self._path = path

    @classmethod
    def load(cls, model: str | Path, device: str = "auto", running: Running | None = None) -> Terminus:
        """`model` is a folder, a .safetensors file, a hub id, or "nano"; `device` is "auto", "cpu", "cuda:1", ...

        `running` is about speed and memory: precision, compiling, offloading, tiles of the VAE.
        """
        where = runtime.pick_device(device)
        how = (running or Running()).on(where)
        components = prepare_for_inference(load_components(model), where, how)
        path = at_home(model)
        return cls(components, path if path.is_file() else resolve(model), how.precision)

    @property
    def name(self) -> str:
        """Name of the folder or file; a run's `model` folder goes by the name of the run."""
        return model_name(self._path) if self._path.is_dir() else self._path.stem

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of the weights' file (of the UNet's, in a folder): what galleries know a model by."""
        if self._path.is_file():
            return sha256([self._path])
        return sha256(weight_files(self._path / "unet", "diffusion_pytorch_model"))

    def text2img(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        hires: Hires | float | None = None,
        **how: Unpack[How],
    ) -> list[Image.Image]:
        """Images (RGB) from prompts. `hires` draws each once more, so many times larger, from the first image."""
        settings, control_inputs = _settings(how), how.get("control_inputs", ())
        again = Hires(hires) if isinstance(hires, int | float) else hires
        stream = self.stream(
            prompt, negative, seed=seed, count=count, settings=settings, hires=again, control_inputs=control_inputs
        )
        return _finished(stream)

    def img2img(
        self,
        prompt: str | Sequence[str],
        image: ImageSource,
        negative: str = "",
        *,
        strength: float = 0.6,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        **how: Unpack[How],
    ) -> list[Image.Image]:
        """Images like `image`, drawn anew by `strength`: 0 (excluded) leaves it, 1 does not look at it."""
        edit = image_to_image(image, strength, _settings(how), self.components)
        return self._edited(prompt, negative, seed, count, how, edit)

    def inpaint(
        self,
        prompt: str | Sequence[str],
        image: ImageSource,
        mask: ImageSource,
        negative: str = "",
        *,
        strength: float = 1.0,
        repaint: Repaint | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        **how: Unpack[How],
    ) -> list[Image.Image]:
        """`image` with the white part of `mask` drawn anew; every other pixel is what it was.

        At strength 1 nothing of what the mask hides has an influence.
        """
        edit = inpainting(image, mask, strength, repaint or Repaint(), _settings(how), self.components)
        return self._edited(prompt, negative, seed, count, how, edit)

    def outpaint(
        self,
        prompt: str | Sequence[str],
        image: ImageSource,
        margins: Margins | tuple[int, int, int, int],
        negative: str = "",
        *,
        repaint: Repaint | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        **how: Unpack[How],
    ) -> list[Image.Image]:
        """`image` continued by `margins`, pixels on its (left, top, right, bottom)."""
        edit = outpainting(image, Margins(*margins), repaint or Repaint(), _settings(how), self.components)
        return self._edited(prompt, negative, seed, count, how, edit)

    def upscale(
        self,
        image: ImageSource,
        factor: float = 2.0,
        prompt: str | Sequence[str] = "",
        negative: str = "",
        *,
        strength: float | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        **how: Unpack[How],
    ) -> list[Image.Image]:
        """`image` with sides `factor` times as long, its detail drawn by the model, in tiles where it is large.

        `strength` None is 0.3, and lower where there are tiles: each of them is drawn from the whole prompt.
        """
        edit = upscaling(image, factor, strength, _settings(how), self.components)
        return self._edited(prompt, negative, seed, count, how, edit)

    def again(
        self,
        source: str | Path,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        control_inputs: Sequence[ControlInput] = (),
    ) -> Image.Image:
        """The image of this file once more, from what the file says of itself.

        Inputs that it only names are given again: `image`, `mask`, `control_inputs`; adapters are attached before.
        UserError if Terminus did not write it, or if the model or one of these is not what it was drawn with.
        """
        generation = settings_of(read_image_metadata(Path(source)), str(source))
        one = recorded_request(generation, self.components, image, mask)
        used = ControlInputs(control_inputs, self.components)
        found = {"model_hash": self.hash, "schedule": self.components.record.schedule}
        found |= {"adapters": self._adapters(), "controls": used.uses, **(one.edit.facts if one.edit else {})}
        check_same(generation, found)
        (drawn,) = _finished(self.draw([one.request], one.settings, one.edit, one.hires, used))
        return drawn

    def stream(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        settings: Settings | None = None,
        edit: Edit | None = None,
        hires: Hires | None = None,
        control_inputs: Sequence[ControlInput] = (),
    ) -> Iterator[SamplingStep]:
        """The same, step by step and batch by batch; stop iterating to cancel."""
        settings = settings or Settings()
        texts = [prompt] if isinstance(prompt, str) else prompt
        requests = [one for text in texts for one in requests_for(text, negative, seed, count, settings)]
        yield from self.draw(requests, settings, edit, hires, control_inputs)

    def draw(
        self,
        requests: Sequence[ImageRequest],
        settings: Settings,
        edit: Edit | None = None,
        hires: Hires | None = None,
        control_inputs: Sequence[ControlInput] | ControlInputs = (),
    ) -> Iterator[SamplingStep]:
        """The steps of these requests, which may differ in everything that is not a setting."""
        if edit is not None and hires is not None:
            raise UserError("A second pass cannot follow an edit", rule="It follows an image drawn from a prompt")
        settings = replace(settings, precision=settings.precision or self._precision)
        given = control_inputs
        used = given if isinstance(given, ControlInputs) else ControlInputs(given, self.components)
        size = edit.canvas.size if edit else settings.size_for(self.components)
        place = edit.canvas.place if edit else partial(scaled, size=size)
        # Enlarged here as well, so that what cannot be drawn or guided in the second pass is said before the first.
        larger = self._enlarged(torch.zeros(*size, 3, dtype=torch.uint8), hires, settings) if hires else None
        task = _Task(settings, used.on(place), edit, used.uses)
        second = larger and replace(task, control_inputs=used.on(larger.canvas.place))
        for batch in self._batches(requests, size, settings):
            now = self._adapters()
            if hires is not None and second is not None:
                yield from self._twice(batch, replace(task, adapters=now), replace(second, adapters=now), hires)
            else:
                yield from self._once(batch, replace(task, adapters=now))

    def _adapters(self) -> tuple[AdapterUse, ...]:
        return tuple(
            AdapterUse(one.name, one.sha256, one.unet, None if one.text == one.unet else one.text)
            for one in self.adapters.attached
        )

    def _edited(
        self, prompt: str | Sequence[str], negative: str, seed: int | Sequence[int], count: int, how: How, edit: Edit
    ) -> list[Image.Image]:
        settings, control_inputs = _settings(how), how.get("control_inputs", ())
        stream = self.stream(
            prompt, negative, seed=seed, count=count, settings=settings, edit=edit, control_inputs=control_inputs
        )
        return _finished(stream)

    def steps(self, settings: Settings, edit: Edit | None = None, hires: Hires | None = None) -> int:
        """Steps that each image takes."""
        strengths = [edit.strength if edit else 1.0, *([hires.strength] if hires else [])]
        return sum(len(visited_timesteps(self.components, settings, strength)) for strength in strengths)

    def _batches(
        self, requests: Sequence[ImageRequest], size: Size, settings: Settings
    ) -> Iterator[Sequence[ImageRequest]]:
        """Neighbours whose texts are read in equally many stretches, as many as are drawn at once."""
        most = max(1, min(_BATCH_IMAGES, _BATCH_PIXELS // (size.height * size.width)))
        known: dict[tuple[str, str], int] = {}
        for one in requests:
            texts = (one.prompt, one.negative)
            if texts not in known:  # tokenizers take longer than everything else here
                known[texts] = prompt_chunks(self.components, one, settings)
        lengths = [known[one.prompt, one.negative] for one in requests]
        start = 0
        for end in range(1, len(requests) + 1):
            if end == len(requests) or lengths[end] != lengths[start] or end - start == most:
                yield requests[start:end]
                start = end

    def _once(self, batch: Sequence[ImageRequest], task: _Task) -> Iterator[SamplingStep]:
        settings, edit, control_inputs = task.settings, task.edit, task.control_inputs
        strength, canvas, tile = (edit.strength, edit.canvas, edit.tile) if edit else (1.0, None, None)
        steps = self.steps(settings, edit)
        for step in generate(self.components, batch, settings, canvas, strength, tile, control_inputs=control_inputs):
            yield SamplingStep(batch, step.index + 1, steps, step.x0, self, task)

    def _twice(self, batch: Sequence[ImageRequest], task: _Task, second: _Task, hires: Hires) -> Iterator[SamplingStep]:
        """Small, then each image enlarged and drawn again: the composition comes from the size the model knows."""
        first, total = self.steps(task.settings), self.steps(task.settings, hires=hires)
        last: SamplingStep | None = None
        for last in self._once(batch, task):
            yield replace(last, steps=total)
        if last is None:
            return
        for request, pixels in zip(batch, to_bytes(self.components, last.x0), strict=True):
            edit = self._enlarged(pixels, hires, task.settings)
            for drawing in self._once([request], replace(second, edit=edit)):
                yield replace(drawing, step=first + drawing.step, steps=total)

    def _enlarged(self, pixels: Pixels, hires: Hires, settings: Settings) -> Edit:
        steps = len(visited_timesteps(self.components, settings, hires.strength))
        growth = Enlargement(hires.factor, Size(*pixels.shape[:2]), "lanczos", steps)
        canvas = enlarge(pixels, hires.factor, self.components)
        return Edit(canvas, hires.strength, {"enlargement": growth, "strength": hires.strength})


def _finished(drawings: Iterator[SamplingStep]) -> list[Image.Image]:
    return [image for drawing in drawings if drawing.finished for image in drawing.images()]


def _settings(how: How) -> Settings:
    given: dict[str, Any] = {key: value for key, value in how.items() if key != "control_inputs"}
    if isinstance(size := given.get("size"), str):
        given["size"] = parse_size(size)
    return Settings(**given)
