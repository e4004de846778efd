"""The UNet and both text encoders as one module, for runs that train them together.

The text encoders learn more slowly than the UNet: a text encoder that moves fast forgets the words that the captions
do not have.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn


class JointModel(nn.Module):
    """One name for all that is trained: `unet.…`, `text_encoder_1.…`, `text_encoder_2.…`; the modules are those of
    the components.
    """

    def __init__(
        self, unet: nn.Module, text_encoder_1: nn.Module, text_encoder_2: nn.Module, text_encoder_rate: float
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder_1, self.text_encoder_2 = unet, text_encoder_1, text_encoder_2
        self.text_encoder_rate = text_encoder_rate
        for text_encoder in (text_encoder_1, text_encoder_2):
            text_encoder.requires_grad_(True)
        # The context is the state before the last layer, and nothing else of this text encoder is read. What has no
        # gradient may not be listed as trained: processes that share the work would wait for it.
        unread = cast(Any, text_encoder_1)
        unread.encoder.layers[-1].requires_grad_(False)
        unread.final_layer_norm.requires_grad_(False)

    def rate_factor(self, name: str) -> float:
        """The learning rate of a parameter, relative to that of the UNet."""
        return 1.0 if name.startswith("unet.") else self.text_encoder_rate


def rate_factor(module: nn.Module, name: str) -> float:
    """The learning rate of a parameter of a trained module, relative to the run's: 1, but for text encoders."""
    return module.rate_factor(name) if isinstance(module, JointModel) else 1.0
