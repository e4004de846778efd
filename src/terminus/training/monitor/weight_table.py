"""The table that a run prints before its first step: how the loss is spread over the timesteps.

The weighting decides whether the terminal step is trained at all, and nothing else shows it: two forms of min-SNR give
it 11 % and 0.03 % of the loss.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from terminus.diffusion.objective import Objective
from terminus.diffusion.weighting import bands
from terminus.training.monitor.journal import BAND

_WIDTH = 40
"""Characters of the longest bar."""


def weight_table(objective: Objective, density: Float64[Tensor, " timesteps"] | None = None) -> list[str]:
    """One line per band of timesteps: its share of all weights, as a number and as a bar, and the terminal weight.

    `density` is how often each timestep is drawn, where that is not equally often.
    """
    drawn = 1.0 if density is None else density
    shares = bands(objective.weights * drawn, BAND).tolist()
    highest = max(shares) or 1.0
    lines = ["share of the loss's weight by timestep:"]
    for number, share in enumerate(shares):
        start = number * BAND
        end = min(start + BAND, objective.schedule.timesteps) - 1
        lines.append(f"  {start:03d}-{end:03d} {100 * share:6.2f} %  {'#' * round(_WIDTH * share / highest)}")
    # What the terminal timestep weighs decides whether the model learns the step at which sampling starts.
    terminal = objective.weights[-1].item()
    never = density is not None and density[-1].item() == 0
    return [*lines, f"  the terminal timestep weighs {terminal:.4g}{' and is never drawn' if never else ''}"]
