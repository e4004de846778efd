"""Prints the README's table of GPU memory by task, as the planner of `terminus train --plan` counts it.

python scripts/memory_table.py        # minutes on a CPU; nothing is loaded and nothing is measured
"""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from terminus import cli

BASE = ["otaku-v1", "training.micro_batch=1", "training.accumulation=1", "training.ema.device=cpu"]
"""SDXL at 1024 × 1024 on cached latents, bf16 compute, one image at a time, average in the machine's memory."""

LORA = ["model.adapter.algorithm=lora", "model.adapter.rank=16", "model.adapter.targets=attention"]
TASKS = {
    "LoRA of rank 16, attention": LORA,
    "full UNet, bf16 weights, Adafactor": ["training.weights=bf16", "training.optimizer={kind: adafactor}"],
    "full UNet, bf16 weights, 8-bit AdamW": ["training.weights=bf16", "training.optimizer.moments=int8"],
    "full UNet, fp32 weights, AdamW": [],
}


def plan(overrides: list[str]) -> dict[str, Any]:
    """What `terminus train RECIPE --plan --json` says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        if cli.main(["train", *BASE, *overrides, "--plan", "--json"]) != 0:
            raise SystemExit("the planner refused; see above")
    return json.loads(said.getvalue())


def main() -> None:
    print("| task | activations kept | activations recomputed (`full`) |")
    print("|---|---|---|")
    for task, overrides in TASKS.items():
        choices = {choice["activation_checkpointing"]: choice for choice in plan(overrides)["choices"]}
        kept, recomputed = (choices[mode]["total_bytes"] / 1e9 for mode in ("none", "full"))
        print(f"| {task} | {kept:.1f} GB | {recomputed:.1f} GB |", flush=True)


if __name__ == "__main__":
    main()
