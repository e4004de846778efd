"""Weights that are used and not trained, stored in the format that they are multiplied in.

Autocast rounds the weight of a linear layer or a convolution to bfloat16 before each product. Stored like that, all
products are the same bit for bit, in half of the memory, and nothing is rounded again in each of them. What was loaded
waits in the machine's memory for the end of the run: a model is never written from rounded weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from terminus.runtime import Precision
from terminus.training.networks.execution import BLOCKS


@dataclass(frozen=True)
class Frozen:
    """Weights that are stored in bfloat16."""

    originals: Mapping[nn.Parameter, Tensor]
    """What each of them was when it was loaded, on the CPU, in the fewest bytes that hold it exactly."""

    @contextmanager
    def as_loaded(self) -> Generator[None]:
        """Within the context they are what was loaded, on the CPU and in mixed formats: to be written, not to run.

        Afterwards they are as before, bit for bit.
        """
        stored = {parameter: parameter.data for parameter in self.originals}
        try:
            for parameter, original in self.originals.items():
                parameter.data = original
            yield
        finally:
            for parameter, data in stored.items():
                parameter.data = data


def store_frozen(networks: Iterable[nn.Module], precision: Precision) -> Frozen:
    """Stores the frozen weights of these networks' blocks in bfloat16, if products are computed in it.

    Biases, norms and embeddings stay float32, and so does what lies outside of the blocks: a fiftieth of SDXL's bytes.
    Call it when what is trained has gradients, and before the networks are compiled.
    """
    originals: dict[nn.Parameter, Tensor] = {}
    if precision == "bf16":
        for network in networks:
            for parameter in frozen_weights(network):
                originals[parameter] = _exact(parameter.data)
                parameter.data = parameter.data.to(torch.bfloat16)
    return Frozen(originals)


def frozen_weights(network: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of linear layers and convolutions within blocks, where they are float32 and not trained; each once."""
    for block in network.modules():
        if type(block).__name__ in BLOCKS:
            for layer in block.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    weight = cast(nn.Parameter, layer.weight)
                    if weight.dtype == torch.float32 and not weight.requires_grad:
                        yield weight


def _exact(values: Tensor) -> Tensor:
    """A copy on the CPU. Files are mostly in half precision, which is enough for what was read from them."""
    half = values.half()
    return (half if torch.equal(half.float(), values) else values).to("cpu", copy=True)
