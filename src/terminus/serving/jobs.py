"""A request for images, as clients write it, and what became of it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from terminus.errors import UserError
from terminus.sampling import limits as sampling_limits
from terminus.serving.limits import LIMITS

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Id = Annotated[str, Field(strict=True, max_length=200, pattern=r"^[^/\\\x00-\x1f]*$")]
Text = Annotated[str, Field(strict=True, max_length=LIMITS.prompt)]
Task = Literal["text", "image", "inpaint", "outpaint", "upscale"]


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Nothing more will happen to it."""
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class Closed(BaseModel):
    """A JSON object of exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class AdapterRequest(Closed):
    """An adapter and its weight."""

    id: Id
    weight: Annotated[Number, Field(ge=-10, le=10)] = 1.0


class HiresRequest(Closed):
    """A second pass on the enlarged first image."""

    factor: Number = 1.5
    strength: Number = sampling_limits.HIRES_STRENGTH


class MarginsRequest(Closed):
    """Pixels that are added on each side."""

    left: StrictInt = 0
    top: StrictInt = 0
    right: StrictInt = 0
    bottom: StrictInt = 0


class ControlRequest(Closed):
    """A network that steers by an image: `id` of the network, `image` of an image or an upload."""

    id: Id
    image: Id
    weight: Annotated[Number, Field(ge=0, le=10)] = 1.0
    start: Annotated[Number, Field(ge=0, le=1)] = 0.0
    end: Annotated[Number, Field(ge=0, le=1)] = 1.0


class JobRequest(Closed):
    """Everything that decides a job's images; null is the model's own default."""

    model: Id
    prompt: Text = ""
    expand: StrictBool = False
    """Let the server's text model write the prompt out first."""
    expanded_from: Text | None = None
    """The prompt as it was given, where a text model wrote it out; the image's metadata keeps it."""
    task: Task = "text"
    negative: Text = ""
    seed: Annotated[StrictInt, Field(ge=0, lt=sampling_limits.SEEDS)] | None = None
    """The first image's; null is drawn by lot, and told."""
    count: Annotated[StrictInt, Field(ge=1, le=LIMITS.count)] = 1
    width: Annotated[StrictInt, Field(ge=1, le=LIMITS.side)] | None = None
    height: Annotated[StrictInt, Field(ge=1, le=LIMITS.side)] | None = None
    steps: Annotated[StrictInt, Field(ge=1, le=LIMITS.steps)] | None = None
    guidance: Number | None = None
    rescale: Number | None = None
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    """Part of the timesteps that is guided; 1 is pure noise."""
    solver: StrictStr | None = None
    spacing: StrictStr | None = None
    variation: Number = 0.0
    adapters: Annotated[list[AdapterRequest], Field(max_length=LIMITS.adapters)] = Field(
        default_factory=list[AdapterRequest]
    )
    image: Id | None = None
    """An image of the gallery, or an upload."""
    mask: Id | None = None
    """An upload; white is drawn anew."""
    invert: StrictBool = False
    """Of the mask: black is drawn anew."""
    feather: StrictInt = 0
    fill: StrictStr | None = None
    strength: Number | None = None
    crop_to_mask: StrictBool = False
    padding: StrictInt = 32
    """Pixels around the mask, where only its surroundings are drawn."""
    margins: MarginsRequest | None = None
    factor: Number | None = None
    """Of an upscaled image's sides."""
    hires: HiresRequest | None = None
    controls: Annotated[list[ControlRequest], Field(max_length=LIMITS.controls)] = Field(
        default_factory=list[ControlRequest]
    )

    @property
    def image_ids(self) -> set[str]:
        """All uploads and images that it names."""
        named = (self.image, self.mask, *(one.image for one in self.controls))
        return {key for key in named if key is not None}


def check_request(request: JobRequest) -> None:
    """UserError for what no model could draw; the rules are those of the command line."""
    usual = {"steps": 28, "guidance": 4.0, "solver": "dpmpp_2m", "spacing": "trailing"}
    given = {name: getattr(request, name) for name in usual}
    # What is left out counts as its default, for pairs of settings that do not go together.
    chosen: dict[str, Any] = {name: usual[name] if value is None else value for name, value in given.items()}
    low, high = request.interval or (0.0, 1.0)
    sampling_limits.check_settings(
        chosen["steps"], chosen["guidance"], request.rescale, (low, high), chosen["solver"], chosen["spacing"],
        request.variation,
    )  # fmt: skip
    sampling_limits.check_seeds(request.seed or 0, request.count)
    sampling_limits.check_repaint(request.fill, request.feather, request.padding)
    if request.strength is not None:
        sampling_limits.check_strength(request.strength)
    if request.hires is not None:
        sampling_limits.check_hires(request.hires.factor, request.hires.strength)
    if (request.width is None) != (request.height is None):
        raise UserError("Only one of width and height is given", rule="Give both, or neither for the model's own size")
    if request.adapters and len({one.id for one in request.adapters}) != len(request.adapters):
        raise UserError("An adapter is named twice", rule="Each adapter is used once, with a weight of its own")
    _check_task(request)


def _check_task(request: JobRequest) -> None:
    needs = {"text": (), "image": ("image",), "inpaint": ("image", "mask"), "outpaint": ("image", "margins"),
             "upscale": ("image",)}[request.task]  # fmt: skip
    for name in ("image", "mask", "margins"):
        if (getattr(request, name) is None) == (name in needs):
            wanted = " and ".join(needs) or "neither image nor mask"
            raise UserError(f"The task {request.task} takes {wanted}", where=name, rule=f"`{name}` decides otherwise")
    if request.margins is not None:
        margins = request.margins
        sampling_limits.check_margins(margins.left, margins.top, margins.right, margins.bottom)
    if request.task == "upscale":
        sampling_limits.check_factor(request.factor or 2.0)
        if request.width is not None:
            raise UserError("Upscaling takes no size", rule="It has the size of its image times the factor")
    if request.hires is not None and request.task != "text":
        raise UserError("A second pass cannot follow an edit", rule="It follows an image drawn from a prompt")


@dataclass
class Job:
    """A request on its way to images."""

    user: str
    request: JobRequest
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: JobState = JobState.QUEUED
    created: float = field(default_factory=time.time)
    finished: float | None = None
    step: int = 0
    steps: int = 0
    attempts: int = 0
    """Times that a worker has begun it."""
    images: list[str] = field(default_factory=list[str])
    """Ids, in the order of their seeds."""
    error: dict[str, str] | None = None
    native: int = 1024
    """Side in pixels of an image that names no size: what its model learnt at."""
    warnings: list[str] = field(default_factory=list[str])
    """Sentences on what was done otherwise than asked; not kept over a restart."""
    key: str | None = None
    """The client's own name for it, by which a repeated request is known."""
    group: str | None = None
    """The grid or comparison that it is part of."""
    again: str | None = None
    """The image that it draws once more."""
    again_result: dict[str, Any] | None = None
