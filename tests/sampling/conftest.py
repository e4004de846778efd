"""A model that draws, and networks that steer it as their authors publish them: folders and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from terminus import Terminus


@pytest.fixture(scope="module")
def model(random_nano: Path) -> Terminus:
    return Terminus.load(random_nano, device="cpu")


@pytest.fixture(scope="session")
def steering(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`edges` (ControlNet), `sketch` (T2I-Adapter), `likeness.safetensors` (IP-Adapter), `ink.safetensors` (LoRA)."""
    from diffusers import ControlNetModel, T2IAdapter
    from safetensors.torch import save_file

    from terminus.model.components import load_components

    root = tmp_path_factory.mktemp("steering")
    unet = load_components(random_nano).unet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        edges = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 24))
        sketch = T2IAdapter(3, [16, 32, 32, 32], 1, downscale_factor=8, adapter_type="full_adapter_xl")
        for network, name in ((edges, "edges"), (sketch, "sketch")):
            for value in network.parameters():  # ControlNets begin with zeros, which would steer nothing
                value.data += 0.1 * torch.randn_like(value)
            network.save_pretrained(root / name)
        save_file(_likeness(unet), root / "likeness.safetensors")
        attention = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
        factors = {"lora_down.weight": torch.randn(2, 64), "lora_up.weight": torch.randn(32, 2)}
        save_file({f"{attention}.{name}": value for name, value in factors.items()}, root / "ink.safetensors")
    return root


def _likeness(unet: torch.nn.Module) -> dict[str, Tensor]:
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(name for name in names if name.endswith("attn2")):
        like = unet.get_submodule(name).to_k.weight
        for which in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * index + 1}.{which}.weight"] = 0.2 * torch.randn_like(like)
    context = unet.config.cross_attention_dim
    return tensors | {
        "image_proj.proj.weight": 0.2 * torch.randn(4 * context, 32),
        "image_proj.proj.bias": 0.2 * torch.randn(4 * context),
        "image_proj.norm.weight": 1 + 0.2 * torch.randn(context),
        "image_proj.norm.bias": 0.2 * torch.randn(context),
    }
