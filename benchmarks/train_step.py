"""Images per second and peak memory of our training step, on synthetic latents with random weights.

    python benchmarks/train_step.py --architecture sdxl --micro-batch 4 8 12
    python benchmarks/train_step.py --architecture sdxl --micro-batch 24 --checkpointing full
    python benchmarks/train_step.py --architecture nano --micro-batch 8 --steps 3     # dry run on a CPU

Prints one row per micro-batch and writes benchmarks/results/train-step-ARCHITECTURE-DEVICE[-HOW].json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import torch

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.diffusion.objective import VelocityObjective
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import min_snr
from terminus.model.architecture import ARCHITECTURES, Architecture
from terminus.model.text import TextFeatures
from terminus.model.unet import build_unet, predict
from terminus.training.optimizer import Adafactor, AdamW, Optimizer, build_optimizer, set_rate
from terminus.training.precision import WeightFormat, store_weights
from terminus.training.speed import Checkpointing, run_as, trainable

TFLOP_PER_IMAGE = {"sdxl": 20.23}
"""Forward and backward of the UNet at 1024 pixels, without recomputation."""


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": AdamW(),
    "adamw-bf16": AdamW(moments="bf16"),
    "adamw-int8": AdamW(moments="int8"),
    "adafactor": Adafactor(kind="adafactor"),
}


@dataclass(frozen=True)
class How:
    """What is measured besides the micro-batch."""

    checkpointing: Checkpointing
    compile: bool
    optimizer: str
    weights: WeightFormat

    @property
    def name(self) -> str:
        """What is not the default."""
        extra = [
            self.checkpointing if self.checkpointing != "none" else "",
            "compiled" if self.compile else "",
            self.optimizer if self.optimizer != "adamw" else "",
            f"weights-{self.weights}" if self.weights != "fp32" else "",
        ]
        return "".join(f"-{word}" for word in extra if word)


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    micro_batch: int
    seconds_per_step: float
    images_per_second: float
    tflops: float | None
    peak_gib: float | None
    first_seconds: float
    """The first step, compiling included."""


def measure(
    architecture: Architecture, name: str, micro_batch: int, steps: int, device: torch.device, how: How
) -> Measured:
    """The median step of `steps`, after two that are not counted."""
    torch.manual_seed(0)
    unet = build_unet(architecture).train()
    trainable(unet, device)
    store_weights(unet, how.weights)
    run_as(unet, how.checkpointing, how.compile)
    optimizer = build_optimizer(unet, OPTIMIZERS[how.optimizer])
    set_rate(optimizer, 1e-6)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    schedule = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
    objective = VelocityObjective(schedule, min_snr(schedule.snr))
    side = architecture.unet.latent_size
    x0, noise = (torch.randn(micro_batch, 4, side, side, device=device) for _ in range(2))
    text = TextFeatures(
        torch.randn(micro_batch, architecture.positions, architecture.context_width, device=device),
        torch.randn(micro_batch, architecture.tower_2.projection, device=device),
    )
    pixels = side * architecture.codec.factor
    ids = time_ids([MicroConditioning.uncropped(Size(pixels, pixels))] * micro_batch, device)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with runtime.autocast(device, "bf16"):
            return predict(unet, x, t, text, ids)

    times: list[float] = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        t = torch.randint(0, 1000, (micro_batch,), device=device)
        objective.loss(network, x0, noise, t).weighted.mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = sorted(times[2:])[steps // 2]
    rate = micro_batch / seconds
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    per_image = TFLOP_PER_IMAGE.get(name)
    return Measured(micro_batch, seconds, rate, rate * per_image if per_image else None, peak, times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="sdxl")
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--checkpointing", choices=get_args(Checkpointing), default="none")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw")
    parser.add_argument("--weights", choices=get_args(WeightFormat), default="fp32")
    options = parser.parse_args()
    how = How(options.checkpointing, options.compile, options.optimizer, options.weights)
    device = runtime.pick_device(options.device)
    rows: list[Measured] = []
    for micro_batch in options.micro_batch:
        try:
            rows.append(
                measure(
                    ARCHITECTURES[options.architecture], options.architecture, micro_batch, options.steps, device, how
                )
            )
        except torch.OutOfMemoryError:
            print(f"micro-batch {micro_batch}: out of memory")
            break
    environment = runtime.environment()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "architecture": options.architecture,
        "how": asdict(how),
        "environment": asdict(environment),
        "rows": [asdict(row) for row in rows],
    }
    target = Path(__file__).parent / "results" / f"train-step-{options.architecture}-{device.type}{how.name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{environment.hardware}, torch {environment.packages['torch']}, bf16 autocast, {how}")
    print(f"{'micro-batch':>12} {'s/step':>8} {'images/s':>9} {'TFLOP/s':>8} {'peak GiB':>9}")
    for row in rows:
        flops = f"{row.tflops:.0f}" if row.tflops else "-"
        peak = f"{row.peak_gib:.1f}" if row.peak_gib else "-"
        print(f"{row.micro_batch:>12} {row.seconds_per_step:>8.3f} {row.images_per_second:>9.2f} {flops:>8} {peak:>9}")


if __name__ == "__main__":
    main()
