"""`Terminus`: a loaded model that draws. The command line, the server and users' scripts all draw through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from terminus import runtime
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components, load_components
from terminus.model.weights import resolve
from terminus.sampling.metadata import Origin, attach
from terminus.sampling.settings import SEEDS, Settings
from terminus.sampling.tasks import text2img, to_bytes

_BATCH_PIXELS = 4 * 1024**2
"""Drawn at once: four SDXL pictures keep a GPU busy, more would only need more memory."""
_BATCH_PICTURES = 64


@dataclass(frozen=True)
class Request:
    """One picture to draw."""

    prompt: str
    seed: int


@final
@dataclass(frozen=True, eq=False)
class Drawing:
    """A batch of pictures after one step."""

    requests: Sequence[Request]
    step: int
    """Steps done, from 1."""
    steps: int
    x0: Float[Tensor, "batch c h w"]
    """What the model believes the pictures' latents to be; after the last step, what they are."""
    _model: Terminus
    _settings: Settings
    _negative: str

    @property
    def finished(self) -> bool:
        return self.step == self.steps

    def pictures(self) -> list[Image.Image]:
        """RGB, one per request; before the last step, previews. Finished ones carry their metadata in `info`."""
        components = self._model.components
        if not torch.isfinite(self.x0).all():
            raise UserError(
                "The model drew NaN or infinity",
                where=self._model.name,
                rule="A picture is made of finite numbers",
                fix="Lower the guidance; if that does not help, the weights are damaged",
            )
        pictures = [Image.fromarray(array.numpy()) for array in to_bytes(components, self.x0)]
        if self.finished:
            for picture, request in zip(pictures, self.requests, strict=True):
                attach(picture, self._origin(request))
        return pictures

    def _origin(self, request: Request) -> Origin:
        components, settings = self._model.components, self._settings
        return Origin(
            prompt=request.prompt,
            negative=self._negative,
            seed=request.seed,
            steps=settings.steps,
            solver=settings.solver,
            guidance=settings.guidance,
            rescale=settings.rescale_for(components),
            size=settings.size_for(components),
            precision=settings.precision_for(components),
            model=self._model.name,
            model_hash=self._model.hash,
            schedule=components.record.schedule,
        )


@final
class Terminus:
    """A model on its device, ready to draw. Make one with `Terminus.load`."""

    def __init__(self, components: Components, path: Path) -> None:
        self.components = components
        self._path = path

    @classmethod
    def load(cls, model: str | Path, device: str = "auto") -> Terminus:
        """`model` is a folder, a hub id, or "nano"; `device` is "auto", "cpu", "cuda", "cuda:1", ..."""
        where = runtime.pick_device(device)
        components = load_components(model).to(where)
        path = Path(model).expanduser()
        return cls(components, path if path.is_file() else resolve(model))

    @property
    def name(self) -> str:
        """Of the folder or file; a run's `model` folder goes by the name of the run."""
        path = self._path.resolve()
        return path.parent.name if path.name == "model" else path.name.removesuffix(".safetensors")

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of the weights' file (of the UNet's, in a folder): what galleries know a model by."""
        files = [self._path] if self._path.is_file() else sorted((self._path / "unet").glob("*.safetensors"))
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as opened:
                while chunk := opened.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def text2img(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        steps: int = Settings.steps,
        guidance: float = Settings.guidance,
        rescale: float | None = Settings.rescale,
        solver: str = Settings.solver,
        size: str | Size | None = None,
    ) -> list[Image.Image]:
        """Pictures (RGB), `count` per prompt, in the order of the prompts.

        Every prompt is drawn with the seeds `seed`, `seed` + 1, ... (or with each of the listed seeds). `size` is
        "WIDTHxHEIGHT" in pixels. UserError for what cannot be drawn.
        """
        where = parse_size(size) if isinstance(size, str) else size
        settings = Settings(steps=steps, guidance=guidance, rescale=rescale, solver=solver, size=where)
        drawings = self.stream(prompt, negative, seed=seed, count=count, settings=settings)
        return [picture for drawing in drawings if drawing.finished for picture in drawing.pictures()]

    def stream(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        *,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        settings: Settings | None = None,
    ) -> Iterator[Drawing]:
        """The same, step by step and batch by batch; stop iterating to cancel."""
        settings = settings or Settings()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = _seeds(seed, count)
        size = settings.size_for(self.components)
        total = len(prompts) * len(seeds)
        batch = max(1, min(_BATCH_PICTURES, _BATCH_PIXELS // (size.height * size.width)))
        for start in range(0, total, batch):
            numbers = range(start, min(start + batch, total))
            requests = [Request(prompts[n // len(seeds)], seeds[n % len(seeds)]) for n in numbers]
            pairs = [one.prompt for one in requests], [one.seed for one in requests]
            for step in text2img(self.components, *pairs, settings, negative):
                yield Drawing(requests, step.index + 1, settings.steps, step.x0, self, settings, negative)


def parse_size(text: str) -> Size:
    """ "WIDTHxHEIGHT" in pixels, as people write it; sizes inside are (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and len(text) <= 12):
        raise UserError(f"size {text!r}", rule="A size is WIDTHxHEIGHT in pixels", fix="For example 1216x832")
    return Size(height=int(height), width=int(width))


def _seeds(seed: int | Sequence[int], count: int) -> Sequence[int]:
    if count < 1:
        raise UserError(f"count {count}", rule="Count is the number of pictures per prompt, at least 1")
    if not isinstance(seed, int):
        if count not in (1, len(seed)):
            raise UserError(f"count {count} and {len(seed)} seeds", rule="A list of seeds is the count")
        return seed
    if not 0 <= seed <= SEEDS - count:
        rule = "A seed is a whole number from 0 to 2^63 - 1, and the pictures of a prompt use consecutive ones"
        raise UserError(f"seed {seed}", rule=rule)
    return range(seed, seed + count)
