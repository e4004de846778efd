"""The UNet and both text towers as one module, for runs that train them together.

The towers learn more slowly than the UNet: a tower that moves fast forgets the words that the captions do not have.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn


class Together(nn.Module):
    """One name for all that is trained: `unet.…`, `tower_1.…`, `tower_2.…`; the modules are those of the components."""

    def __init__(self, unet: nn.Module, tower_1: nn.Module, tower_2: nn.Module, text_rate: float) -> None:
        super().__init__()
        self.unet, self.tower_1, self.tower_2 = unet, tower_1, tower_2
        self.text_rate = text_rate
        for tower in (tower_1, tower_2):
            tower.requires_grad_(True)
        # The context is the state before the last layer, and nothing else of this tower is read. What has no gradient
        # may not be listed as trained: processes that share the work would wait for it.
        unread = cast(Any, tower_1)
        unread.encoder.layers[-1].requires_grad_(False)
        unread.final_layer_norm.requires_grad_(False)

    def rate_factor(self, name: str) -> float:
        """The learning rate of a parameter, relative to that of the UNet."""
        return 1.0 if name.startswith("unet.") else self.text_rate


def rate_factor(module: nn.Module, name: str) -> float:
    """The learning rate of a parameter of a trained module, relative to the run's: 1, but for text towers."""
    return module.rate_factor(name) if isinstance(module, Together) else 1.0
