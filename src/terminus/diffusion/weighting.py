"""Weights of each timestep's squared error in the loss.

One residual seen in three coordinates: x0 error = sigma × v error and epsilon error = alpha × v error, so

    |Δv|² = (SNR + 1) |Δx0|²        |Δε|² = SNR |Δx0|² = SNR / (SNR + 1) |Δv|²

and for the velocity u = ε − x0 of a rectified flow, whose sigma is 1 / (1 + √SNR), |Δu|² = (1 + √SNR)² |Δx0|².

A published weight for one prediction is carried to another by these factors. They decide what happens at
SNR = 0, the step that zero-terminal-SNR training exists for; see docs/math.md.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from .prediction import PredictionType

Table = Float64[Tensor, "timesteps"]
MinSnrForm = Literal["augmented", "paper", "epsilon"]


def min_snr(
    snr: Table,
    gamma: float = 5.0,
    form: MinSnrForm = "augmented",
    floor: float = 0.0,
    prediction: PredictionType = "velocity",
) -> Table:
    """Min-SNR-γ (Hang et al. 2303.09556): no timestep counts more than γ times in x0 terms.

    With d = SNR + 1 for velocity, (1 + √SNR)² for flow and SNR for epsilon (|Δprediction|² = d |Δx0|²), `paper` is
    min(SNR, γ) / d, as published: 0 for both velocities at SNR = 0. `augmented` is min(d, γ) / d: 1 there. `epsilon` is
    min(SNR, γ) / SNR, the published weight of the noise error, on the error of whatever is predicted, and 1 at
    SNR = 0: so trainers of 2023 weighted velocity. For epsilon all three are the same. No weight is below
    `floor` (0 .. 1).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}: every weight would be 0")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be in 0 .. 1, got {floor}")
    if form not in get_args(MinSnrForm):
        raise ValueError(f"form must be one of {', '.join(get_args(MinSnrForm))}, got {form!r}")
    scale = _scale(snr, prediction)
    if form == "epsilon":
        return (gamma / snr).clamp(min=floor, max=1.0)  # γ / 0 is infinity, and so 1
    # The cap is on d in one form and on the SNR in the other; d divides both.
    capped = scale if form == "augmented" else snr
    return (capped.clamp(max=gamma) / scale).clamp(min=floor)


def soft_min_snr(snr: Table, gamma: float = 5.0, prediction: PredictionType = "velocity") -> Table:
    """Crowson et al. 2401.11605: min(SNR, γ) without its corner, SNR γ / (SNR + γ) on the x0 error.

    Never above min-SNR's `paper` form, and like it 0 for velocity at SNR = 0, where it leaves the step untrained.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}: every weight would be 0")
    return snr * gamma / (snr + gamma) / _scale(snr, prediction)


def debiased(snr: Table, prediction: PredictionType = "velocity") -> Table:
    """Yu et al. 2310.08442: 1 / sqrt(SNR) on the epsilon error.

    The same loss on velocity is 1 / sqrt(SNR) × SNR / (SNR + 1) = sqrt(SNR) / (SNR + 1) = alpha sigma:
    finite everywhere, and 0 at SNR = 0, where it leaves the terminal step untrained.
    """
    return snr.sqrt() / _scale(snr, prediction)


def constant(snr: Table) -> Table:
    """Every timestep counts the same in the network's own prediction."""
    return torch.ones_like(snr)


def bands(weights: Table, width: int = 100) -> Float64[Tensor, "bands"]:
    """The share of the total weight in each run of `width` timesteps, from t = 0 up; the shares sum to 1."""
    return torch.stack([band.sum() for band in weights.split(width)]) / weights.sum()


def _scale(snr: Table, prediction: PredictionType) -> Table:
    """|Δprediction|² / |Δx0|²; ValueError for epsilon where SNR = 0, since x0 is not in x there."""
    if prediction == "velocity":
        return snr + 1
    if prediction == "flow":
        return (1 + snr.sqrt()).square()
    if bool((snr == 0).any()):
        raise ValueError("epsilon has no finite weight at SNR = 0; a zero-terminal-SNR model must predict velocity")
    return snr
