"""The noise schedule: how much signal and how much noise a latent holds at each timestep.

A schedule is one immutable float64 table; alpha, sigma and SNR are derived from it each time they are
asked for, so none of them can belong to another schedule (an SNR table taken before the zero-terminal-SNR
rescale is the field's most copied bug). The coordinates are (alpha, sigma): both are finite everywhere,
unlike sigma / alpha, which is infinite where a zero-terminal-SNR schedule ends.

Diffusion and rectified flow are two scales of one curve. The table holds the signal's share of the variance,
alpha² / (alpha² + sigma²); whether alpha² + sigma² or alpha + sigma is 1 is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

Scale = Tensor | float
"""alpha or sigma: a number, or one for each sample."""
SHIFTS = (0.05, 50.0)
"""The smallest and largest shift of a flow that recipes and files may ask for; SD3 has 3, and up to 12 is in use."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """x_t = alpha_t x0 + sigma_t epsilon, with alpha_t² = alphas_cumprod[t] and alpha_t² + sigma_t² = 1.

    `alphas_cumprod` (ᾱ of Ho et al. 2006.11239) falls strictly from below 1 to 0 or above. The schedule
    keeps its own copy on the CPU. With `flow`, both scales are divided by their sum, so that the SNR is the same
    and alpha_t + sigma_t = 1.
    """

    alphas_cumprod: Float64[Tensor, "timesteps"]
    flow: bool = False
    """Whether this is a rectified flow (Liu et al. 2209.03003): x_t lies on the straight line from x0 to epsilon."""

    def __post_init__(self) -> None:
        table = self.alphas_cumprod.detach().to("cpu", copy=True)
        if table.ndim != 1 or len(table) < 2 or table.dtype != torch.float64:
            raise ValueError(f"alphas_cumprod must be float64 [timesteps], got {table.dtype} {list(table.shape)}")
        falling = bool((table.diff() < 0).all())
        if not (falling and float(table[0]) < 1 and float(table[-1]) >= 0):
            raise ValueError("alphas_cumprod must fall strictly, from below 1 to 0 or above")
        # Frozen from here on.
        object.__setattr__(self, "alphas_cumprod", table)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000
    ) -> NoiseSchedule:
        """The schedule of SDXL: sqrt(beta) is linear in t (Rombach et al. 2112.10752, "scaled linear")."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64).square()
        return cls(torch.cumprod(1 - betas, dim=0))

    @classmethod
    def rectified_flow(cls, timesteps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """sigma = (t + 1) / T, the last pure noise; `shift` multiplies sigma / alpha (Esser et al. 2403.03206, eq. 23).

        So larger images, in which less noise hides, are seen with more of it: SD3 has 3 at 1024 pixels.
        """
        if not 0 < shift < float("inf"):
            raise ValueError(f"shift must be a finite number above 0, got {shift}")
        # u is the line's own time, 1 at the end; sigma / alpha = shift u / (1 - u), whose scale does not matter here.
        u = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
        signal, noise = (1 - u).square(), (shift * u).square()
        return cls(signal / (signal + noise), flow=True)

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """The same curve moved and stretched so that the last alpha is exactly 0 and the first unchanged.

        Lin et al. 2305.08891, Algorithm 1. A flow ends there as it is.
        """
        if self.flow:
            return self
        alpha = self.alpha
        first, last = alpha[0], alpha[-1]
        # alpha moves down by its last value, and is stretched back to its first.
        table = ((alpha - last) * (first / (first - last))).square()
        table[0] = self.alphas_cumprod[0]  # exactly, not to the last bit of a division and a square
        return NoiseSchedule(table)

    @property
    def timesteps(self) -> int:
        """T; timesteps are 0 .. T−1."""
        return len(self.alphas_cumprod)

    @property
    def is_zero_terminal(self) -> bool:
        """Whether the last latent is pure noise."""
        return float(self.alphas_cumprod[-1]) == 0.0

    @property
    def alpha(self) -> Float64[Tensor, "timesteps"]:
        """Signal scale, in 0..1."""
        cosine = self.alphas_cumprod.sqrt()
        return cosine / (cosine + self._sine) if self.flow else cosine

    @property
    def sigma(self) -> Float64[Tensor, "timesteps"]:
        """Noise scale, in 0..1. 1 − ᾱ loses the first three digits at t = 0: float64 has them to spare."""
        return self._sine / (self.alphas_cumprod.sqrt() + self._sine) if self.flow else self._sine

    @property
    def _sine(self) -> Float64[Tensor, "timesteps"]:
        return (1 - self.alphas_cumprod).sqrt()

    @property
    def snr(self) -> Float64[Tensor, "timesteps"]:
        """Signal-to-noise ratio alpha² / sigma²; 0 at the end of a zero-terminal-SNR schedule."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def at(
        self, t: Int[Tensor, "batch"], ndim: int
    ) -> tuple[Float[Tensor, "batch *ones"], Float[Tensor, "batch *ones"]]:
        """(alpha, sigma) of each sample: float32, on `t`'s device, shaped to multiply `ndim` dimensions."""
        shape = (-1,) + (1,) * (ndim - 1)
        alpha, sigma = (gather(table, t).reshape(shape) for table in (self.alpha, self.sigma))
        return alpha, sigma

    def rates(self, alpha: Scale, sigma: Scale) -> tuple[Scale, Scale]:
        """(a, b) of the velocity a epsilon − b x0, at the `alpha` and `sigma` of some timesteps.

        They are how fast sigma grows and alpha falls along the curve, so that a alpha + b sigma = 1 on both: on the
        circle by its angle, (alpha, sigma); on the line by sigma, (1, 1).
        """
        return (1.0, 1.0) if self.flow else (alpha, sigma)

    def network_time(self, t: Int[Tensor, "batch"]) -> Tensor:
        """The time that a network is told of each timestep: its number, or T sigma in 0..T on a flow schedule.

        The latter is the convention of SD3 and of what else samples flows, whatever their shift.
        """
        return gather(self.timesteps * self.sigma, t) if self.flow else t


def gather(table: Float64[Tensor, "timesteps"], t: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """table[t] in float32 on `t`'s device; ValueError (on a GPU, a device assert) outside 0 .. T−1."""
    if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < len(table):
        # A negative index would read the table from its end, in silence: t = −1 is pure noise.
        raise ValueError(f"timesteps are 0 to {len(table) - 1}, got {int(t.min())} to {int(t.max())}")
    return table.float().to(t.device, non_blocking=True)[t]
