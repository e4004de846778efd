"""The VAE's step: an autoencoder that keeps edges, at the resolution of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from terminus import runtime
from terminus.data.batch import Batch
from terminus.model.vae import VAE, to_signal
from terminus.training.step import StepLoss


@dataclass(frozen=True)
class VAEStep:
    """Absolute and squared error of pixels, absolute error of their differences, and the posterior's divergence.

    The absolute errors keep edges sharp; the squared one is what teaches colour early, where absolute error settles
    for the median gray.
    """

    vae: VAE
    squared_weight: float
    edge_weight: float
    kl_weight: float
    seed: int
    device: torch.device
    precision: runtime.Precision

    @property
    def trained(self) -> nn.Module:
        """The VAE's autoencoder, encoder and decoder."""
        return self.vae.autoencoder

    def loss(self, batch: Batch, step: int) -> StepLoss:
        """Per image; `error` is the mean absolute error of pixels in [-1, 1]."""
        pixels = runtime.sent(to_signal(batch.values), self.device)
        with runtime.autocast(self.device, self.precision):
            posterior = self.vae.encode(pixels)
            # A sample of the posterior, so that the decoder learns to decode what training will show it.
            noise = [
                torch.randn(posterior.mean.shape[1:], generator=runtime.rng(self.seed, position, "moments"))
                for position in batch.positions
            ]
            decoded = self.vae.decode(self.vae.latents(posterior, runtime.sent(torch.stack(noise), self.device)))
        error = (decoded - pixels).abs().flatten(1).mean(1)
        squared = (decoded - pixels).square().flatten(1).mean(1)
        # Differences of neighbouring pixels, down and across.
        edges = sum(
            (_differences(decoded, axis) - _differences(pixels, axis)).abs().flatten(1).mean(1) for axis in (2, 3)
        )
        # KL divergence from a standard normal (Kingma & Welling 1312.6114, appendix B).
        divergence = 0.5 * (posterior.mean.square() + posterior.logvar.exp() - 1 - posterior.logvar).flatten(1).sum(1)
        weighted = self.squared_weight * squared + self.edge_weight * edges + self.kl_weight * divergence
        return StepLoss(error + weighted, error)

    def seeded(self, seed: int) -> VAEStep:
        """The same step, drawing other random numbers."""
        return replace(self, seed=seed)


def _differences(x: Tensor, axis: int) -> Tensor:
    return x.diff(dim=axis)
