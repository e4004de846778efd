"""A run on one screen: where it stands, how fast it is, and whether it learns.

On a terminal a live view, redrawn once a second; elsewhere a plain line now and then. `watch` shows the same of a run
that another process trains, from its folder alone.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from terminus import runtime
from terminus.config.load import load
from terminus.errors import UserError
from terminus.progress import logged_above
from terminus.training.monitor.facts import finished_images
from terminus.training.monitor.history import Follower, History, read_history
from terminus.training.monitor.journal import LogRow
from terminus.training.monitor.screen import RunStatus, image, number, plural, span
from terminus.training.objectives import Diffusion
from terminus.training.plan.cost import count_cost
from terminus.training.plan.gpus import find_gpu
from terminus.training.plan.memory import shape_of
from terminus.training.recipe import Recipe
from terminus.training.saving import checkpoint

SECONDS_BETWEEN_DRAWINGS = 1.0
FIRST_SECONDS_BETWEEN_LINES, MOST_SECONDS_BETWEEN_LINES = 10.0, 60.0
"""Without a terminal: often while a person still looks on, and bearable for weeks."""
_WARM_UP = 3
"""Rows of a session that say nothing of its pace: compilation, and reading ahead."""


@dataclass(frozen=True)
class About:
    """Facts of a run that its log does not hold."""

    name: str
    folder: Path
    images: int
    """To have seen at the end: whole steps."""
    begun: int = 0
    """Images seen when this session began."""
    saves_every: int = 0
    """Images between checkpoints."""
    device: torch.device | None = None
    """What this process trains on; None if another process does."""
    processes: int = 1
    """Processes that train together, with one device each."""
    flops: float | None = None
    """FLOPs of an image, without what is computed again; None where it is not known."""
    peak: float | None = None
    """FLOP/s of all devices together; None where it is not known."""


def about_run(
    recipe: Recipe, folder: Path, begun: int = 0, device: torch.device | None = None, processes: int = 1
) -> About:
    """The facts of a recipe's run; FLOPs are counted (seconds, for SDXL) where the device's peak is known.

    The largest bucket counts, and of an adapter's steps nothing is said: their work is not counted.
    """
    training = recipe.training
    images = -(-training.images // training.global_batch) * training.global_batch
    flops = peak = None
    # Model FLOPs utilisation, where the peak is known: bf16 on a GPU of our table.
    if device is not None and device.type == "cuda" and training.precision == "bf16" and recipe.model.adapter is None:
        with suppress(UserError):  # a device or a network that is not in our tables
            peak = processes * find_gpu(torch.cuda.get_device_name(device)).peak
            flops = count_cost(shape_of(recipe), "none").total if isinstance(recipe.objective, Diffusion) else None
    return About(
        recipe.run.name, folder, images, begun, training.checkpoints.every_images, device, processes, flops, peak
    )


class Dashboard:
    """Shows the rows of a run as they come; use as a context manager. What it costs a step is a few microseconds."""

    def __init__(self, what: About, console: Console, history: History | None = None) -> None:
        """`history` is what the log said before; left out, it is read from the run's folder."""
        self.what, self.console = what, console
        self.history = read_history(what.folder / "log.jsonl") if history is None else history
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        self._pace = _Pace()
        self._lock = threading.RLock()
        self._spoken = self._start = time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=self.draw,
            refresh_per_second=1 / SECONDS_BETWEEN_DRAWINGS,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._logged = logged_above(self._live)

    def row(self, row: LogRow, before: dict[str, float] | None = None) -> None:
        """A step is done; `before` is what was measured before the first one."""
        with self._lock:
            self.history.add(row, before)
            self._pace.add(row.images_seen)
        if not self.is_live:
            self._line(row)

    def reread(self) -> None:
        """The log was written anew: rows were undone."""
        with self._lock:
            self.history = read_history(self.what.folder / "log.jsonl")

    def caught_up(self, history: History, fresh: int) -> None:
        """Tells a viewer what the log says now, `fresh` rows of it since the last time."""
        with self._lock:
            self.history = history
            if history.last and fresh:
                self._pace.add(history.last.images_seen)
        if history.last and fresh and not self.is_live:
            self._line(history.last)

    def draw(self) -> RenderableType:
        """The whole view, as wide as the terminal."""
        with self._lock:
            facts = self._facts()
            return image(self.what.name, facts, self.history, self.console.size, self.console.options.ascii_only)

    def __enter__(self) -> Dashboard:
        if self.is_live:
            self._logged.__enter__()
            # A process that is killed could not show it again.
            self.console.show_cursor(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_live:
            with suppress(OSError):  # a terminal that has gone away ends no run
                self._logged.__exit__(None, None, None)

    def _facts(self) -> RunStatus:
        what, last = self.what, self.history.last
        # A run that is continued has seen images before the first row of this session.
        seen = max(what.begun, last.images_seen if last else 0)
        saved, age = _last_checkpoint(what.folder / "checkpoints")
        speed = self.history.speed
        return RunStatus(
            folder=str(what.folder),
            images=what.images,
            seen=seen,
            processes=what.processes,
            session_seconds=time.monotonic() - self._start if what.device is not None else None,
            left_seconds=(what.images - seen) / rate if (rate := self._pace.rate or speed) > 0 else None,
            silent_seconds=self._pace.silent,
            mfu=speed * what.flops / what.peak if what.flops and what.peak and isfinite(speed) else None,
            memory=_memory(what.device),
            saved=saved,
            saved_seconds=age,
            saves_every=what.saves_every,
        )

    def _line(self, row: LogRow) -> None:
        now = time.monotonic()
        # Lines become rarer as the run goes on; a validation and the end are told at once.
        wait = min(max(FIRST_SECONDS_BETWEEN_LINES, (now - self._start) / 60), MOST_SECONDS_BETWEEN_LINES)
        if now - self._spoken < wait and not row.validation and row.images_seen < self.what.images:
            return
        self._spoken = now
        with self._lock, suppress(OSError):
            self.console.print(Text(", ".join(self._words(row))), soft_wrap=True)

    def _words(self, row: LogRow) -> Iterable[str]:
        facts = self._facts()
        yield f"train: {row.images_seen}/{self.what.images} images"
        yield f"{number(row.images_per_second)} images/s"
        if facts.mfu is not None:
            yield f"MFU {facts.mfu:.1%}"
        if facts.left_seconds:
            yield f"{span(facts.left_seconds)} left"
        yield f"loss {self.history.curves['loss'].now:.4f}"
        yield f"lr {row.learning_rate:.1e}"
        yield f"gradient {number(row.gradient_norm)}"
        if self.history.validations:
            before = (self.history.before or {}).get("all")
            said = f"validation {self.history.validations[-1][1].get('all', float('nan')):.4f}"
            yield said if before is None else f"{said} (before {before:.4f})"
        if self.history.left_out:
            yield f"{plural(self.history.left_out, 'step')} left out"
        if facts.memory:
            yield f"memory {facts.memory}"


class _Pace:
    """Images per second of the wall clock, measuring and saving included: what the time left follows from."""

    def __init__(self) -> None:
        self._rows = 0
        self._first: tuple[float, int] | None = None
        self._last = (time.monotonic(), 0)

    def add(self, images: int) -> None:
        self._rows += 1
        self._last = (time.monotonic(), images)
        if self._rows == _WARM_UP:
            self._first = self._last

    @property
    def rate(self) -> float:
        """0 before it is known."""
        if self._first is None or self._rows < 2 * _WARM_UP:
            return 0.0
        return max(0.0, (self._last[1] - self._first[1]) / max(self._last[0] - self._first[0], 1e-9))

    @property
    def silent(self) -> float:
        """Seconds since the last row."""
        return time.monotonic() - self._last[0]


def _last_checkpoint(folder: Path) -> tuple[int | None, float]:
    """(Images, seconds ago) of the newest; None if there is none."""
    with suppress(OSError, ValueError, IndexError):
        newest = checkpoint.whole_checkpoints(folder)[-1]
        # Its name ends in the images seen.
        return int(newest.name.rpartition("-")[2]), max(0.0, time.time() - newest.stat().st_mtime)
    return None, 0.0


def _memory(device: torch.device | None) -> str:
    """The most that this process has held so far; of the device, or of the machine where it trains on the CPU."""
    if device is None:
        return ""
    if device.type == "cuda":
        held, there = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{held / 1e9:.1f} of {there / 1e9:.1f} GB"
    # ru_maxrss counts bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"


def watch(folder: Path, console: Console, seconds: float = 1.0, is_over: Callable[[], bool] = lambda: False) -> None:
    """Shows a run that another process trains until its model is finished; looks every so many seconds.

    Only reads, so it may look from another machine. A run that is stopped is waited for: the same command continues
    it. UserError if the folder is not that of a run.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(
            "This is not a run's folder",
            where=str(folder),
            rule="The folder of a run (run.dir) holds its recipe.yaml",
            fix="Correct run.dir, or start the run first",
        )
    # The recipe says what does not change, the log what does; nothing is asked of the process that trains.
    recipe = load(folder / "recipe.yaml", Recipe).value
    follower = Follower(folder / "log.jsonl")
    fresh = follower.read()
    with Dashboard(about_run(recipe, folder), console, follower.history) as dashboard:
        while True:
            dashboard.caught_up(follower.history, fresh)
            finished = finished_images(folder)
            if is_over() or (finished is not None and finished >= recipe.training.images):
                return
            time.sleep(seconds)
            fresh = follower.read()


def dashboard(recipe: Recipe, folder: Path, begun: int, processes: int = 1) -> Dashboard:
    """The dashboard of the run that this process trains, on standard error."""
    device = runtime.pick_device(recipe.run.device)
    return Dashboard(about_run(recipe, folder, begun, device, processes), Console(stderr=True, highlight=False))
