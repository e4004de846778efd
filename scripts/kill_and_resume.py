"""Trains nano twice, once undisturbed and once killed by SIGKILL in the middle of steps, and draws both runs' losses.

    python scripts/kill_and_resume.py            # two minutes on two CPU cores

The killed run is started again by the same command. Every loss that either process wrote is compared with the
undisturbed run's, bit by bit, also those of steps that were done again. Writes docs/images/kill-and-resume.png and
benchmarks/results/kill-and-resume-nano-cpu.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from terminus import runtime

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "kill-and-resume.png"
RESULT = ROOT / "benchmarks" / "results" / "kill-and-resume-nano-cpu.json"
KILLS = (23, 45)
"""Steps after which the process is killed; a checkpoint is made every 10."""

SETTINGS = [
    "data.store=data",
    "data.sources=[{kind: embedded, name: emoji, styles: [flat], backgrounds: 1, limit: 128}]",
    "training.images=480",
    "training.micro_batch=8",
    "training.precision=fp32",
    "training.checkpoints.every_images=80",
    "training.validation.images=32",
]
# Two threads that wait for each other cost more than they do where other programs want the cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COLOURS = ("#d1495b", "#edae49", "#00798c")
Losses = dict[int, float]


def command(verb: str, run: str) -> list[str]:
    return [sys.executable, "-m", "terminus", verb, "nano", f"run.dir={run}", *SETTINGS]


def losses(folder: Path) -> Losses:
    """Step to loss, of the lines that are whole."""
    log = folder / "log.jsonl"
    if not log.exists():
        return {}
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def train(folder: Path, run: str, kill_after: int | None) -> Losses:
    """One process, killed when its log holds the step; what it had written."""
    process = subprocess.Popen(
        command("train", run),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if kill_after is not None and max(losses(folder / run), default=0) >= kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.02)
    expected = 0 if kill_after is None else -signal.SIGKILL
    if process.returncode != expected:
        raise SystemExit(f"the training ended with {process.returncode}, expected {expected}")
    return losses(folder / run)


def compare(folder: Path) -> tuple[Losses, list[Losses], list[int]]:
    """The undisturbed run; what the log of the other held at the end of each process; the first step of each."""
    subprocess.run(command("prepare", "whole"), cwd=folder, env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
    whole = train(folder, "whole", None)
    parts = [train(folder, "killed", kill) for kill in (*KILLS, None)]
    sessions = (folder / "killed" / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    return whole, parts, [json.loads(line)["step"] + 1 for line in sessions]


def draw(whole: Losses, parts: list[Losses], first_steps: list[int]) -> Image.Image:
    """Loss by step: a grey line for the undisturbed run, dots for each process of the other."""
    scale, width, height, left, top, bottom = 2, 900, 360, 60, 56, 44
    image = Image.new("RGB", (width * scale, height * scale), "white")
    pen = ImageDraw.Draw(image)
    high = max(whole.values()) * 1.05

    def at(step: float, loss: float) -> tuple[float, float]:
        x = left + (width - left - 20) * step / max(whole)
        return x * scale, (height - bottom - (height - top - bottom) * loss / high) * scale

    def text(x: float, y: float, words: str, colour: str = "#333333", size: int = 14) -> None:
        pen.text((x * scale, y * scale), words, fill=colour, font=ImageFont.load_default(size * scale))

    for number in range(0, int(high * 10) + 1, 2):
        pen.line([at(0, number / 10), at(max(whole), number / 10)], fill="#e6e6e6", width=scale)
        text(20, at(0, number / 10)[1] / scale - 9, f"{number / 10:.1f}")
    for step in range(0, max(whole) + 1, 10):
        text(at(step, 0)[0] / scale - 8, height - bottom + 6, str(step))
    text(width / 2 - 60, height - 22, "optimizer step")
    pen.line([at(step, loss) for step, loss in sorted(whole.items())], fill="#999999", width=2 * scale)
    for number, (part, first) in enumerate(zip(parts, first_steps, strict=True)):
        for step, loss in part.items():
            if step >= first:
                x, y = at(step, loss)
                radius = (5 - number) * scale / 1.3
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=COLOURS[number])
    for number, kill in enumerate(KILLS):
        pen.line([at(kill + 0.5, 0), at(kill + 0.5, high)], fill=COLOURS[number], width=scale)
        text(at(kill + 0.5, 0)[0] / scale + 4, top, "kill -9", COLOURS[number])
    text(left, 8, "Loss of nano, killed twice and continued by the same command", "#111111", 17)
    text(left, 31, "grey line: never killed.  Dots: the three processes of the killed run; some steps were done twice.")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts, first_steps = compare(Path(scratch))
    compared = [(step, loss) for part in parts for step, loss in part.items()]
    different = [step for step, loss in compared if loss.hex() != whole[step].hex()]
    result = {
        "date": date.today().isoformat(),
        "what": "losses of nano, killed by SIGKILL and continued, against a run that was never killed",
        "settings": SETTINGS,
        "steps": len(whole),
        "killed_after_step": [max(part) for part in parts[:-1]],
        "continued_at_step": first_steps[1:],
        "losses_compared": len(compared),
        "losses_different_in_any_bit": len(different),
        "steps_of_the_continued_run": len(parts[-1]),
        "last_loss": {"undisturbed": whole[max(whole)].hex(), "continued": parts[-1][max(whole)].hex()},
        "environment": asdict(runtime.environment()),
    }
    print(json.dumps(result, indent=2))
    if different or set(parts[-1]) != set(whole):
        raise SystemExit("the runs differ; nothing was written")
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(whole, parts, first_steps).save(IMAGE, optimize=True)


if __name__ == "__main__":
    main()
