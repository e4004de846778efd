"""Training learns: a tiny UNet overfits a handful of latents, and the validation error falls with it."""

from __future__ import annotations

import json
from pathlib import Path

from terminus.training.run import train


def test_eight_images_are_learned(recipe, tmp_path: Path):
    """From random weights; the bar is far below the error of predicting nothing, about 1 for unit-variance latents."""
    train(recipe("training.images=2400", "training.micro_batch=8", "training.accumulation=1", "data.validation_fraction=0.01",
                 "training.learning_rate={max: 3.0e-3, min: 1.0e-4, period_images: 2400}",
                 "training.checkpoints.every_images=2400", "training.validation.every_images=1200"))  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first = sum(row["error"] for row in rows[:20]) / 20
    last = sum(row["error"] for row in rows[-20:]) / 20
    assert last < 0.8 * first
    assert rows[-1]["validation"]["all"] < rows[0]["validation_before"]["all"]
