"""The exponential moving average of the weights: what is sampled, validated and shipped."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import sqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from terminus.config.base import Config, unsaid
from terminus.training.distributed.sharded_files import local
from terminus.training.distributed.sharding import Alone, Engine


class _Kept(Config):
    """The place of an average and how often it moves."""

    device: Literal["model", "cpu"] = "model"
    """`cpu` keeps it in the machine's memory, 4 bytes per parameter, and moves it beside the training."""
    every_steps: int = Field(default=1, gt=0)
    """Optimizer steps between two moves; a move of several steps weighs as much as they do."""


class ConstantEma(_Kept):
    """Old weights count half after a number of images."""

    kind: Literal["constant"] = "constant"
    """One half-life for the whole run."""
    half_life_images: int = Field(default=100_000, gt=0)
    """Images after which old weights count half."""
    ramp: float = Field(default=0.1, gt=0, le=1)
    """The half-life is at most this share of the images seen, so that a young average is not its random start."""


class PowerEma(_Kept):
    """Karras et al. 2312.02696, section 3.1: weights count with a power of the time at which they were."""

    kind: Literal["power"]
    """A memory that grows with the run and always spans the same share of it."""
    width: float = Field(default=0.05, gt=0, lt=0.28)
    """Standard deviation of the average's profile, as a share of the images seen."""


Ema = Annotated[ConstantEma | PowerEma, Field(discriminator="kind"), unsaid("constant")]
"""Exponential moving average of the weights, in float32; the finished model is the average."""


def decay(settings: ConstantEma | PowerEma, images: int, step_images: int) -> float:
    """The share of the old average that a move over `step_images` keeps, when `images` have been seen at its end."""
    if isinstance(settings, PowerEma):
        return (1.0 - step_images / images) ** (power(settings.width) + 1.0)
    # beta = 0.5 ** (step / half-life), with the half-life ramped up as in Karras et al. 2206.00364, appendix F.
    half_life = min(settings.half_life_images, max(1.0, settings.ramp * images))
    return 0.5 ** (step_images / half_life)


def power(width: float) -> float:
    """The exponent gamma of the profile t ** gamma on [0, 1] whose standard deviation is `width`.

    Solves sigma² = (gamma + 1) / ((gamma + 2)² (gamma + 3)), equation 4 of 2312.02696, in which sigma falls with gamma.
    """
    low, high = 0.0, 1.0 / width  # sigma < 1 / (gamma + 2), so the exponent is below
    # Bisection to the last bit: then the middle is one of the two ends.
    while True:
        gamma = (low + high) / 2
        if gamma in (low, high):
            return gamma
        wider = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) > width
        low, high = (gamma, high) if wider else (low, gamma)


class Average:
    """Float32 copies of a module's trainable parameters, averaged over images.

    Of several processes each averages what the engine says is its own: whole parameters, or its rows of all of them.
    """

    def __init__(self, module: nn.Module, settings: ConstantEma | PowerEma, engine: Engine | None = None) -> None:
        self.settings, self.engine = settings, engine or Alone()
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        there = "cpu" if settings.device == "cpu" else None
        self._tensors = {name: p.to(there, torch.float32, copy=True) for name, p in self._live().items()}
        self._mail = _Mail() if settings.device == "cpu" else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name; a move that is under way is waited for."""
        if self._mail:
            self._mail.wait()
        return self._tensors

    @torch.no_grad()
    def update(self, images: int, step_images: int) -> None:
        """Moves towards the live weights after a step of `step_images` images that ended at `images`."""
        every = self.settings.every_steps
        # Steps are equally large, so their number follows from the images.
        if images // step_images % every:
            return
        weight = 1.0 - decay(self.settings, images, every * step_images)
        if self._mail:
            self._mail.send(self._live(), self._tensors, weight)
            return
        for name, parameter in self._live().items():
            self._tensors[name].lerp_(parameter.float(), weight)

    @contextmanager
    def swapped_in(self) -> Generator[None]:
        """Within the context the module holds the average; afterwards its own weights again, bit for bit.

        Parameters that are not float32 are float32 within it: rounding the average would undo what it is for.
        """
        tensors = self.tensors
        # Parameters that are not float32 get other tensors; the values of the others change in place.
        narrow = {name: p.data for name, p in self.trained.items() if p.dtype != torch.float32}
        kept = {name: p.clone() for name, p in self._live().items() if name not in narrow}
        # What another process averages comes with `share_weights`; its weights keep the place until then.
        for name, own in narrow.items():
            self.trained[name].data = tensors[name].to(own.device) if name in tensors else own.float()
        self._load({name: tensors[name] for name in kept})
        self.engine.share_weights()
        try:
            yield
        finally:
            for name, own in narrow.items():
                self.trained[name].data = own
            self._load(kept)
            self.engine.share_weights()

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        live = self._live()
        for name, tensor in tensors.items():
            live[name].copy_(tensor)

    def _live(self) -> dict[str, Tensor]:
        """The parameters that this process averages, in their own memory."""
        return {name: local(p) for name, p in self.trained.items() if self.engine.mine(name)}


class _Mail:
    """Sends the weights of one moment to the CPU and moves an average there, while the device goes on training.

    The device copies in the order of its work, so it cannot change a weight before that is on its way: what it loses
    is the time of the copy. The rest happens in a thread; there is never more than one letter under way.
    """

    def __init__(self) -> None:
        self._letter: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "average")
        self._moving: Future[None] | None = None

    def send(self, live: dict[str, Tensor], average: dict[str, Tensor], weight: float) -> None:
        """Begins to move an average on the CPU towards the live weights of this moment."""
        self.wait()
        for name, parameter in live.items():
            if name not in self._letter:
                # Page-locked, or the copy would wait for the device.
                self._letter[name] = torch.empty_like(parameter, device="cpu", pin_memory=parameter.is_cuda)
            self._letter[name].copy_(parameter, non_blocking=True)
        # The thread waits for these copies alone, not for what the device is told to do next.
        devices = {parameter.device for parameter in live.values() if parameter.is_cuda}
        arrived = [torch.cuda.current_stream(device).record_event().synchronize for device in devices]
        self._moving = self._thread.submit(_move, average, self._letter, weight, arrived)

    def wait(self) -> None:
        """Waits until the average has moved; raises what went wrong there."""
        if self._moving is not None:
            moving, self._moving = self._moving, None
            moving.result()


def _move(
    average: dict[str, Tensor], letter: dict[str, Tensor], weight: float, arrived: list[Callable[[], None]]
) -> None:
    for wait in arrived:
        wait()
    for name, weights in letter.items():
        average[name].lerp_(weights.float(), weight)
