"""What a worker is told, and what it tells: plain data between the two processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terminus.serving.jobs import JobRequest


@dataclass(frozen=True)
class Steering:
    """A control network and the image that it looks at."""

    kind: str
    source: Path
    image: Path
    weight: float
    start: float
    end: float


@dataclass(frozen=True)
class DrawOrder:
    """One job, with files in place of ids."""

    job: str
    model: str
    """Path or name, as `Terminus.load` takes it."""
    request: JobRequest
    """With its seed."""
    image: Path | None = None
    mask: Path | None = None
    adapters: tuple[tuple[Path, float], ...] = ()
    controls: tuple[Steering, ...] = ()
    watched: bool = False
    """Somebody waits for previews."""
    again: Path | None = None
    """The image that is drawn once more; the request is then its own."""

    def joins(self, other: DrawOrder) -> bool:
        """Whether the two can be drawn as one batch: everything equal but prompts and seeds."""
        return self.plain and other.plain and self._shared() == other._shared()

    @property
    def plain(self) -> bool:
        """Drawn from its prompt alone, in one pass."""
        request = self.request
        return request.task == "text" and request.hires is None and not self.controls and self.again is None

    def _shared(self) -> tuple[object, ...]:
        of = self.request
        return (self.model, self.adapters, of.width, of.height, of.steps, of.guidance, of.rescale, of.interval,
                of.solver, of.spacing, of.variation)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """To a worker: draw these at once."""

    orders: tuple[DrawOrder, ...]


@dataclass(frozen=True)
class Cancel:
    """To a worker: nobody wants this job any more."""

    job: str


@dataclass(frozen=True)
class Watch:
    """To a worker: somebody looks on from now."""

    job: str


@dataclass(frozen=True)
class Stop:
    """To a worker: end."""


@dataclass(frozen=True)
class Ready:
    """From a worker: it can draw."""

    device: str
    model: str | None


@dataclass(frozen=True)
class Stepped:
    """From a worker: a step of some images of a job is done."""

    job: str
    step: int
    steps: int
    done: float
    """Share of the whole job, 0..1."""
    first: int
    """Number of the first image that is drawn now."""
    previews: tuple[bytes, ...]


@dataclass(frozen=True)
class Drawn:
    """From a worker: a finished image."""

    job: str
    number: int
    seed: int
    width: int
    height: int
    png: bytes
    thumbnail: bytes
    metadata: str
    """The JSON that the file holds."""
    parameters: str
    """A1111's text."""
    difference: str | None = None
    """Of an image drawn again, from the first one; "" where there is none."""


@dataclass(frozen=True)
class Done:
    """From a worker: a job has all its images, or was cancelled."""

    job: str
    cancelled: bool = False


@dataclass(frozen=True)
class Failed:
    """From a worker: a job cannot be drawn."""

    job: str
    error: dict[str, str]


@dataclass(frozen=True)
class Idle:
    """From a worker: it waits; what it has in memory."""

    loaded: tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """From a worker that cannot begin at all."""

    error: dict[str, str]


ToWorker = Draw | Cancel | Watch | Stop
FromWorker = Ready | Stepped | Drawn | Done | Failed | Idle | Broken
