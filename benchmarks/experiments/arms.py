"""The arms of the experiment: recipes that differ in their objective alone, and short conversions of a leaky model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes" / "experiments"
FROM_RANDOM = (
    "epsilon",
    "velocity",
    "ztsnr-constant",
    "ztsnr-paper",
    "ztsnr-augmented",
    "ztsnr-epsilon-form",
    "flow",
)
LEAKY = "velocity"
"""The arm whose models are converted."""
CONVERSIONS = (320, 960, 3_200, 9_600)
"""Images that a conversion to zero terminal SNR is trained on."""
LEAKS = {"leak-1.2": 0.012, "leak-4.8": 0.00843, "leak-19": 0.005055}
"""beta_end of `LEAKY` on other schedules, named by N SNR_T: what SDXL's leaves at latents of 16, 32 and 64 pixels a
side. The arm itself is the fourth, 77 at 128."""


@dataclass(frozen=True)
class Arm:
    """One training: a recipe, a seed, and a folder of its own."""

    name: str
    seed: int
    recipe: Path
    overrides: tuple[str, ...]
    folder: Path

    @property
    def model(self) -> Path:
        """The finished model."""
        return self.folder / "model"

    def train(self) -> None:
        """Runs `terminus train`, which goes on where it was stopped. CalledProcessError where it fails."""
        command = [sys.executable, "-m", "terminus", "train", str(self.recipe), *self.overrides]
        subprocess.run(command, check=True)


def all_arms(out: Path, seeds: int, overrides: tuple[str, ...] = ()) -> list[Arm]:
    """Every arm with seed 0 first, so that a run that is cut short has whole rows of the table; the leaks last."""
    arms: list[Arm] = []
    for seed in range(seeds):
        arms += [_arm(out, name, seed, RECIPES / f"{name}.yaml", overrides) for name in FROM_RANDOM]
        start = f"model.start={out / f'{LEAKY}-{seed}' / 'model'}"
        for images in CONVERSIONS:
            more = (start, f"training.images={images}", f"training.learning_rate.period_images={images}")
            arms.append(_arm(out, f"converted-{images}", seed, RECIPES / "converted.yaml", (*overrides, *more)))
    for seed in range(seeds):
        for name, beta_end in LEAKS.items():
            more = (*overrides, f"model.beta_end={beta_end}")
            arms.append(_arm(out, name, seed, RECIPES / f"{LEAKY}.yaml", more))
    return arms


def _arm(out: Path, name: str, seed: int, recipe: Path, overrides: tuple[str, ...]) -> Arm:
    folder = out / f"{name}-{seed}"
    return Arm(
        name,
        seed,
        recipe,
        (f"run.dir={folder}", f"data.store={out / 'data'}", f"training.seed={seed}", *overrides),
        folder,
    )
