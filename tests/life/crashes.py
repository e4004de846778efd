"""Kills a training at every file event of its folder, continues each, and judges the end: run by test_crashes.py.

    python crashes.py RECIPE WORK [MODE ...]      prints one JSON row per crash point

`before` kills before the event, `torn` cuts the file in half as well, `unsynced` takes away what was not forced to the
disk (after a power cut), `term` asks to end by SIGTERM.
The injector is that of ckpt-chaos, where it is installed. Everything is imported once, and each training runs in a
fork of this process, which has not touched its data: a hundred kills take minutes and not an hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from ckpt_chaos import inject

from terminus.config.load import load
from terminus.errors import Stopped
from terminus.training import run
from terminus.training.monitor.sessions import read_sessions
from terminus.training.recipe import Recipe
from terminus.training.saving.checkpoint import images_of, whole_checkpoints

GLOBAL_BATCH = 2
"""Of the recipe, which keeps all of its checkpoints."""


def main(recipe: str, work: Path, modes: list[str]) -> None:
    reference = work / "reference"
    assert child(recipe, reference, log=work / "events", crash_at=None, mode="before") == 0
    events = [line.split("\t") for line in (work / "events").read_text().splitlines()]
    wanted = digest(reference)
    complete = {step_of(path): sizes(path) for path in whole_checkpoints(reference / "checkpoints")}
    for mode in modes:
        for number, kind, name, tornable in events:
            # The log is only appended to and is forced to the disk before each save: no kill cuts it in half.
            if mode == "torn" and (tornable == "0" or name == "log.jsonl"):
                continue
            folder = work / f"{mode}-{number}"
            killed = child(recipe, folder, log=None, crash_at=int(number), mode=mode)
            newest = max((step for step, size in complete.items() if sizes(at(folder, step)) == size), default=0)
            before = len(read_sessions(folder))
            ended = child(recipe, folder, log=None, crash_at=None, mode="before")
            # None if the kill came when all was done and the same command had nothing left to do.
            begun = next((session.step for session in read_sessions(folder)[before:]), None)
            if ended:
                verdict = "HARD_FAIL"
            elif digest(folder) != wanted:
                verdict = "SILENT_DIVERGENCE"
            else:
                verdict = "LOST_WORK" if begun is not None and begun < newest else "PASS"
            row = {"event": int(number), "kind": kind, "name": name, "mode": mode, "exit": killed, "verdict": verdict}
            print(json.dumps(row), flush=True)
            if verdict == "PASS":
                shutil.rmtree(folder)


def child(recipe: str, folder: Path, *, log: Path | None, crash_at: int | None, mode: str) -> int:
    """The exit code of a training in a fork."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    code = 1
    try:
        if log is not None or crash_at is not None:
            os.environ["CKPT_CHAOS_GRACE_S"] = "60"
            where = str(log) if log else None
            inject.arm(str(folder), crash_at=crash_at, mode=mode, log_path=where, torn_python=True)
        run.train(load(recipe, Recipe, [f"run.dir={folder}"]))
        code = 0
    except Stopped:
        code = 75
    finally:
        os._exit(code)


def at(folder: Path, step: int) -> Path:
    paths = (path for path in whole_checkpoints(folder / "checkpoints") if step_of(path) == step)
    return next(paths, folder / "checkpoints" / "none")


def step_of(path: Path) -> int:
    return images_of(path) // GLOBAL_BATCH


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*")}


def digest(folder: Path) -> str:
    """Of everything that must not depend on interruptions: the last checkpoint's tensors, the model, the log."""
    total = hashlib.sha256()
    last = whole_checkpoints(folder / "checkpoints")[-1]
    for path in [*sorted(last.glob("*.safetensors")), *sorted((folder / "model").rglob("*.safetensors"))]:
        total.update(path.read_bytes())
    for line in (folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        total.update(json.dumps([row[key] for key in ("step", "images_seen", "loss", "gradient_norm")]).encode())
    return total.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or ["before", "torn"])
