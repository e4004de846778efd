"""Guards against bad steps: one is left out, and many in a row take the run back to a checkpoint.

A step whose loss or gradient is not finite changes nothing. `PATIENCE` of them in a row say that the weights
themselves have gone wrong: the run returns to its last good checkpoint and leaves out everything since, data included,
as one who restarts before a spike and passes over its batches does (Chowdhery et al. 2204.02311, section 5.1). Steps
and images go on counting, so the rate, the order and all randomness stay functions of them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from pydantic import Field

from terminus.config.base import Config
from terminus.errors import UserError

PATIENCE = 50
"""Steps in a row that may be left out before the run goes back."""

RETURNS = 3
"""Times that one run may go back."""

WINDOW = 128
"""Steps whose loss and gradient norm the next ones are compared with."""

Reason = Literal["not finite", "spike"]


class Guards(Config):
    """Which steps are left out, beyond those that are not finite."""

    spike_sigmas: float | None = Field(default=None, gt=0)
    """Skip a step whose loss or gradient norm is this many deviations above the last 128; null: none. OLMo: 6."""


@dataclass(frozen=True)
class Health:
    """The guards' memory; part of a run's position, so that a continued run judges as it would have."""

    failed: int = 0
    """Steps in a row that were left out, up to now."""
    recent: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of the last `WINDOW` finite steps; empty where spikes are not looked for."""
    returns: tuple[tuple[int, int], ...] = ()
    """(Step of the checkpoint, step at which the run went back to it), once for each time."""

    @property
    def undone(self) -> int:
        """Steps whose work was given up by going back, those that had been left out anyway included."""
        total = end = 0
        for to, at in sorted(self.returns):  # a second return may go further back than the first
            total += max(0, at - max(to, end))
            end = max(end, at)
        return total


def reason_to_skip(loss: float, norm: float, health: Health, settings: Guards) -> Reason | None:
    """Why a step is to be left out, or None if it is a good one."""
    if not (isfinite(loss) and isfinite(norm)):
        return "not finite"
    # A spike stands out against a whole window, not against the first few steps.
    if settings.spike_sigmas is None or len(health.recent) < WINDOW:
        return None
    # Loss and norm, each against its own past.
    for value, past in zip((loss, norm), zip(*health.recent, strict=True), strict=True):
        if value > statistics.fmean(past) + settings.spike_sigmas * statistics.stdev(past):
            return "spike"
    return None


def after(health: Health, loss: float, norm: float, reason: Reason | None, settings: Guards) -> Health:
    """The health after a judged step. A spike is remembered as well, or the run could never get used to a new level."""
    recent = health.recent
    if settings.spike_sigmas is not None and reason != "not finite":
        recent = (*recent, (loss, norm))[-WINDOW:]
    return replace(health, failed=0 if reason is None else health.failed + 1, recent=recent)


def must_go_back(health: Health) -> bool:
    """Whether too many steps in a row were left out."""
    return health.failed >= PATIENCE


def good_before(step: int, health: Health) -> int:
    """The last step whose checkpoint may be gone back to.

    It is the one before the trouble began; or, where not one step was good since the last return, one before that.
    """
    begun = step - health.failed
    # Not one good step since the last return: that checkpoint is part of the trouble.
    if health.returns and begun <= health.returns[-1][1]:
        return health.returns[-1][0] - 1
    return begun


def no_way_back(step: int, health: Health) -> UserError:
    """The error that ends a run which can go back no further."""
    times = f", and the run went back {len(health.returns)} times before" if health.returns else ""
    return UserError(
        f"{health.failed} steps in a row were left out, the last is step {step}{times}",
        rule="A bad step is left out, and many take the run back to a good checkpoint, if there is one",
        fix="Look at the samples that log.jsonl names, or begin a run with a lower rate or precision fp32",
    )
