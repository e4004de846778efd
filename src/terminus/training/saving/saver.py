"""Saving while training goes on: a copy of everything is taken at once, and a thread writes it.

There is one save at a time; the next one waits for it, and so does the end of the run. Where the disk is full, or does
not take it for another reason, the thread tries again while training goes on, and a newer state takes the place of the
one that waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from terminus.errors import UserError
from terminus.runtime import free_memory
from terminus.training.distributed.process_group import World
from terminus.training.recipe import Checkpoints
from terminus.training.saving import checkpoint
from terminus.training.saving.atomic_files import DiskFull, Unwritten, require_room, writing_file
from terminus.training.saving.checkpoint import Pieces, RunPosition

log = logging.getLogger("terminus")

RETRY_SECONDS = 60.0
"""Between two tries to write, each with a message."""

SOON = (1.0, 2.0, 4.0)
"""Seconds before the first of them where the disk is not full: most errors of network disks pass. A signal that asks
to end waits for these."""

LIMIT_SECONDS = 6 * 3600.0
"""How long a run goes on without being able to save."""

MARGIN_BYTES = 16 << 20
"""Room for logs and images."""

MEMORY_SHARE = 0.5
"""The copy may take this share of the memory that is free; a larger one is not made, and training waits instead."""


class Saver:
    """Writes the checkpoints of one run. Leaving the context waits for the save that is under way."""

    def __init__(
        self, folder: Path, settings: Checkpoints, flush: Callable[[], None], world: World | None = None
    ) -> None:
        """`flush` forces the log to the disk: a checkpoint may not be newer than its log."""
        self.folder, self.settings, self._flush = folder, settings, flush
        self._world = world or World()
        self._line = self._world.second()
        """For the thread; `_world` is the main one's."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._save: Future[None] | None = None
        self._give_way = threading.Event()
        self._failing_since: float | None = None

    def save(
        self, position: RunPosition, pieces: Pieces, *, wait: bool = False, patient: bool = True, prune: bool = True
    ) -> None:
        """Copies and writes; with `wait`, it is on the disk when this returns.

        Raises what an earlier save met, and `Unwritten` where the disk has taken none for `LIMIT_SECONDS`, or, if not
        `patient`, none of the first tries (one where it is full).
        """
        # One save at a time: an older state that waits for room gives way to this one.
        self.join(give_way=True)
        self._give_way.clear()
        room = MEMORY_SHARE * free_memory() / self._world.local_size
        # Where one process has no memory for a copy all wait, or the others' next step would wait for its save.
        if not self._world.any(wait or checkpoint.checkpoint_bytes(pieces) > room):
            copies = {part: {name: piece.copied() for name, piece in some.items()} for part, some in pieces.items()}
            self._save = self._pool.submit(self._write, position, copies, patient, prune)
        else:
            self._write(position, pieces, patient, prune)

    def join(self, give_way: bool = False) -> None:
        """Waits for the save that is under way; raises what it met. With `give_way`, one that waits for room ends."""
        if give_way:
            self._give_way.set()
        if self._save is not None:
            save, self._save = self._save, None
            save.result()

    def check(self) -> None:
        """Raises what a save that has ended met, if anything."""
        if self._save is not None and self._world.any(self._save.done()):
            self.join()

    def _write(self, position: RunPosition, pieces: Pieces, patient: bool, prune: bool) -> None:
        tries = 0
        while True:
            try:
                # The log first, for a checkpoint may not be newer.
                self._line.together(self._flush)
                checkpoint.save_checkpoint(self.folder, position, pieces, self._line)
            except Unwritten as error:
                # All processes try again, or all give up.
                pause = self._pause(error, tries, patient)
                if self._line.any(pause is None):
                    self._give_up()
                    raise
                log.warning("%s Trying again in %.0f s", error, pause)
                if self._line.any(self._give_way.wait(pause)):
                    return  # a newer state is about to be written
                tries += 1
                continue
            if self._failing_since is not None:
                log.warning("the disk takes checkpoints again: saved at %d images", position.images)
                self._failing_since = None
            # Old ones go only now that the new one is whole.
            if prune and self._line.first:
                checkpoint.prune(self.folder, self.settings.keep, self.settings.milestone_images)
            return

    def _give_up(self) -> None:
        with suppress(UserError):
            there = checkpoint.whole_checkpoints(self.folder)
            newest = (
                f"the newest checkpoint is at {checkpoint.images_of(there[-1])} images" if there else "there is none"
            )
            log.warning("gave up; %s, and the log is complete", newest)

    def _pause(self, error: Unwritten, tries: int, patient: bool) -> float | None:
        """Seconds until the next try; None where there is none."""
        # Counted from the first of all tries that failed in a row, of this save or of those before it.
        self._failing_since = self._failing_since or time.monotonic()
        if tries < len(SOON) and not isinstance(error, DiskFull):
            return SOON[tries]
        if not patient or time.monotonic() - self._failing_since > LIMIT_SECONDS:
            return None
        return RETRY_SECONDS

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that ends by an error waits for no room.
        if error is not None:
            self._give_way.set()
        self._pool.shutdown()
        if error is None:
            self.join()


def require_checkpoint_room(folder: Path, size: int, keep: int, saves: int) -> None:
    """Before the first step: room for as many checkpoints of `size` bytes as the `saves` to come will add.

    While one is written there is one more than are kept.
    """
    missing = min(saves, max(1, keep + 1 - len(checkpoint.whole_checkpoints(folder))))
    if missing > 0:
        with writing_file("The checkpoints of this run", folder):
            folder.mkdir(parents=True, exist_ok=True)
            require_room(folder, missing * size + MARGIN_BYTES)
