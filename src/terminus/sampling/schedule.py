"""The schedule of a checkpoint, from the plain numbers that it stores: the same object trains and samples."""

from __future__ import annotations

from terminus.diffusion.schedule import NoiseSchedule
from terminus.model.record import Schedule


def noise_schedule(stored: Schedule) -> NoiseSchedule:
    """The alpha and sigma tables of a stored schedule."""
    schedule = NoiseSchedule.scaled_linear(stored.beta_start, stored.beta_end, stored.timesteps)
    return schedule.with_zero_terminal_snr() if stored.zero_terminal else schedule
