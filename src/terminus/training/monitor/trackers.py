"""Weights & Biases beside the run: the curves and previews of a run, for those who collect runs there.

Each tracker lives in a process of its own, which is told rows and images through a pipe. So whatever it does (wait
for a network, print, crash) happens to itself: the run goes on, and says once that it has given the tracker up. It is
told the recipe, the rows of the log and the paths of previews, and nothing else.

This file is also the program of that process, and imports nothing of ours there: a tracker whose own requirements do
not go with those of Terminus may have a Python of its own (`TERMINUS_TRACKERS_PYTHON`).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from terminus.training.monitor.journal import LogRow

log = logging.getLogger("terminus")

Kind = Literal["wandb"]

PYTHON = "TERMINUS_TRACKERS_PYTHON"
"""Environment variable: the Python that has the trackers, if it is not the one that trains."""
PROJECT = "terminus"
PATIENCE = 30.0
"""Seconds for which the end of a run waits for what is still to be sent; after that a tracker goes on alone."""
_LAST_MINUTES = 15
"""After the run has ended; then the tracker's process ends itself."""
_CURVES = ("loss", "error", "learning_rate", "gradient_norm", "images_per_second", "images_seen", "epoch")


class Trackers:
    """All trackers of a run; use as a context manager. Nothing here waits or raises while the run goes on."""

    def __init__(self, folder: Path, kinds: Sequence[Kind], name: str, recipe: Mapping[str, object]) -> None:
        """A run that is continued continues there: its ids stand in `trackers.json` in the run's folder.

        `recipe` is what the tracker shows as the run's configuration.
        """
        ids = _ids(folder / "trackers.json", kinds) if kinds else {}
        begin = {"name": name, "folder": str(folder.resolve()), "config": dict(recipe)}
        self._all = [_Tracker(kind, folder / "trackers" / kind, begin | {"id": ids[kind]}) for kind in kinds]

    def row(self, row: LogRow, before: Mapping[str, float] | None = None) -> None:
        """A step, as it stands in the log; `before` is what was measured before the first one, and is step 0."""
        if before is not None:
            self._tell({"step": 0, "values": {"images_seen": 0.0} | _finite(_named("validation", before))})
        curves: dict[str, float | None] = {key: getattr(row, key) for key in _CURVES}
        curves |= _named("band", row.bands) | _named("validation", row.validation or {})
        curves["left_out"] = float(row.reason is not None)
        self._tell({"step": row.step, "values": _finite(curves)})

    def image(self, path: Path, step: int) -> None:
        """A preview, which stays where it is."""
        self._tell({"step": step, "image": str(path.resolve())})

    def close(self) -> None:
        """Ends the input of each, and waits a little for what is still to be sent."""
        for one in self._all:
            one.end()
        for one in self._all:
            one.wait(PATIENCE)
        self._all = []

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, message: Mapping[str, object]) -> None:
        for one in self._all:
            one.tell(message)


def _named(kind: str, values: Mapping[str, float]) -> dict[str, float | None]:
    return {f"{kind}/{name}": value for name, value in values.items()}


def _finite(curves: Mapping[str, float | None]) -> dict[str, float]:
    """Only numbers that a tracker can draw."""
    return {name: value for name, value in curves.items() if value is not None and isfinite(value)}


class _Tracker:
    """The process of one tracker, from our side."""

    def __init__(self, kind: Kind, folder: Path, begin: Mapping[str, object]) -> None:
        self.kind, self.said = kind, folder / "output.txt"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.said.open("ab") as output:
                self._process = subprocess.Popen(
                    # -P: the folder of this file is ours, and none of its modules may be found by a tracker.
                    [os.environ.get(PYTHON) or sys.executable, "-P", __file__, kind],
                    stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder,
                    start_new_session=True,  # Ctrl-C is for the run, which then ends its trackers in order
                )  # fmt: skip
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        # A write that would have to wait fails instead: training waits for no tracker.
        os.set_blocking(_pipe(self._process), False)
        self.tell(begin)

    def tell(self, message: Mapping[str, object]) -> None:
        """One line; a process that does not read it is given up."""
        if self._process is None:
            return
        line = (json.dumps(message, default=str) + "\n").encode()
        try:
            # The other side does nothing but read: a pipe that stays full belongs to a process that is stuck.
            if os.write(_pipe(self._process), line) < len(line):
                self._give_up("it does not read")
        except BlockingIOError:
            self._give_up("it does not read")
        except OSError:
            self._give_up("it ended")

    def end(self) -> None:
        """Closes the pipe: nothing more will come."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Waits until the tracker has sent everything, at most so long."""
        if self._process is None:
            return
        try:
            if self._process.wait(seconds) != 0:
                self._give_up("it failed")
        except subprocess.TimeoutExpired:
            log.warning("%s is still sending, and goes on for at most %d minutes", self.kind, _LAST_MINUTES)

    def _give_up(self, reason: str) -> None:
        log.warning("%s is given up (%s): %s; training goes on", self.kind, reason, _last_words(self.said))
        self.end()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        self._process = None


def _pipe(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    return process.stdin.fileno()


def _last_words(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        # The last line that speaks of an error; failing that, the last one.
        telling = [line for line in lines if "error" in line.lower()] or lines
        if telling:
            return "".join(char if char.isprintable() else "?" for char in telling[-1])[:300]
    return f"see {path}"


def _ids(path: Path, kinds: Sequence[Kind]) -> dict[str, str]:
    """The run's id at each tracker, made at the first start."""
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = {str(key): str(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    missing = {kind: uuid.uuid4().hex[:12] for kind in kinds if kind not in known}
    if missing:
        try:
            path.write_text(json.dumps(known | missing) + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("%s cannot be written (%s): trackers will begin anew", path, error.strerror or error)
    return known | missing


Tell = Callable[[dict[str, Any]], None]
"""Passes on a row or an image."""


def _wandb(begin: Mapping[str, Any]) -> tuple[Tell, Callable[[], object]]:
    """Without an account, or with WANDB_MODE=offline, see W&B's manual; nothing of the machine is sent."""
    wandb: Any = import_module("wandb")
    # Off is all that W&B collects by itself: it gets what it is told.
    settings = wandb.Settings(
        console="off", disable_git=True, disable_code=True, save_code=False, disable_job_creation=True,
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), id=begin["id"], name=begin["name"], resume="allow",
        config=begin["config"], dir=os.getcwd(), settings=settings,
    )  # fmt: skip
    # Everything is drawn over the images seen, as in the run's own log.
    run.define_metric("images_seen", hidden=True)
    run.define_metric("*", step_metric="images_seen")

    def tell(message: dict[str, Any]) -> None:
        # What a killed run does once more has the same step and the same numbers, and W&B leaves it out.
        values = message.get("values") or {"preview": wandb.Image(message["image"])}
        run.log(values, step=message["step"])

    return tell, run.finish


def tracker_main(kind: str) -> int:
    """The tracker's process: reads messages until its input ends."""
    # A thread empties the pipe, also while the tracker waits for its network.
    messages: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        rest = b""
        while data := os.read(0, 1 << 16):  # not sys.stdin, whose lock would be held when the process ends
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                messages.put(cast("dict[str, Any]", json.loads(line)))
        messages.put(None)
        signal.setitimer(signal.ITIMER_REAL, 60 * _LAST_MINUTES)  # a network that never answers

    threading.Thread(target=read, daemon=True).start()
    begin = messages.get()
    if begin is None:
        return 0
    tell, finish = {"wandb": _wandb}[kind](begin)
    while (message := messages.get()) is not None:
        tell(message)
    finish()
    return 0


if __name__ == "__main__":
    sys.exit(tracker_main(sys.argv[1]))
