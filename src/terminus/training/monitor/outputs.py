"""Outputs of a run's rows and images: the log, the dashboard, the trackers.

Of several processes that train together the first one has them; the others have an object that does nothing, so that
no caller asks which process it is.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from terminus.training.monitor.dashboard import Dashboard, dashboard
from terminus.training.monitor.journal import Journal, LogRow
from terminus.training.monitor.trackers import Trackers
from terminus.training.recipe import Recipe


@runtime_checkable
class Outputs(Protocol):
    """Places that a run reports to while it trains."""

    @property
    def shown(self) -> bool:
        """Whether anything is written; images need not be decoded where not."""
        ...

    def row(self, row: LogRow, before: dict[str, float] | None) -> None:
        """One step; `before` is the held-out loss from before the first one."""
        ...

    def preview(self, path: Path, sheet: Image.Image, step: int) -> None:
        """A sheet of previews, which has been saved at `path`."""
        ...

    def undo(self, after: int, number: int) -> None:
        """Marks the rows after a step as undone by the run's `number`-th return to a checkpoint."""
        ...

    def sync(self) -> None:
        """Forces the log to the disk; may be called by another thread."""
        ...


class NoOutputs:
    """The outputs of a process that writes none."""

    shown = False

    def row(self, row: LogRow, before: dict[str, float] | None) -> None:
        """Does nothing."""

    def preview(self, path: Path, sheet: Image.Image, step: int) -> None:
        """Does nothing."""

    def undo(self, after: int, number: int) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class RunOutputs:
    """The log, with TensorBoard's copy of its curves, the dashboard and the trackers."""

    journal: Journal
    dashboard: Dashboard
    trackers: Trackers
    shown = True

    def row(self, row: LogRow, before: dict[str, float] | None) -> None:
        """One step; `before` is the held-out loss from before the first one."""
        self.journal.write(row, before)
        self.dashboard.row(row, before)
        self.trackers.row(row, before)

    def preview(self, path: Path, sheet: Image.Image, step: int) -> None:
        """A sheet of previews, which has been saved at `path`."""
        pixels = torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255
        self.journal.image("preview", pixels, step)
        self.trackers.image(path, step)

    def undo(self, after: int, number: int) -> None:
        """Marks the rows after a step as undone by the run's `number`-th return to a checkpoint."""
        self.journal.undo(after, number)
        self.dashboard.reread()

    def sync(self) -> None:
        """Forces the log to the disk; may be called by another thread."""
        self.journal.sync()


@contextmanager
def open_outputs(recipe: Recipe, folder: Path, step: int, images: int, processes: int) -> Generator[RunOutputs]:
    """The outputs of the run in `folder`, which continues after `step` steps and `images` images."""
    config = recipe.model_dump(mode="json")
    with (
        Trackers(folder, recipe.run.trackers, recipe.run.name, config) as trackers,
        Journal(folder, step, recipe.run.name) as journal,
        dashboard(recipe, folder, images, processes) as screen,
    ):
        yield RunOutputs(journal, screen, trackers)
