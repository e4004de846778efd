"""What tests of several rooms share: a whole model, small enough to draw an image in a moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Before anything imports torch: our tensors are tiny, and threads that wait for each other cost more than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

# Before anything imports terminus: shapes are checked whenever a test calls what states them. Only in the files that
# state any, since each call of a checked function costs 50 us more, and a short training made two thirds more of them.
SOURCES = Path(__file__).parents[1] / "src"
SHAPED = [file.relative_to(SOURCES) for file in SOURCES.rglob("*.py") if "jaxtyping" in file.read_text("utf-8")]
jaxtyping.install_import_hook([".".join(file.with_suffix("").parts) for file in SHAPED], "beartype.beartype")


@pytest.fixture(scope="session")
def random_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: SDXL's classes, the shipped tokenizers, fixed random weights, 32 × 32 pixels, ZTSNR + velocity.

    Session-scoped, so read it only; copy it (`shutil.copytree`) to change it.
    """
    # Imported here: tests that need no network should not wait for torch.
    import torch

    from terminus.model.architecture import Architecture, TextEncoderShape, UNetShape, VAEShape, VisionShape
    from terminus.model.components import Components, save_components
    from terminus.model.record import Record
    from terminus.model.text import build_text_encoders, build_vision
    from terminus.model.text_encoders import load_tokenizer
    from terminus.model.unet import build_unet
    from terminus.model.vae import build_vae
    from terminus.model.weights import SHIPPED

    text_encoder = TextEncoderShape(width=32, layers=2, heads=2, hidden=64, activation="quick_gelu", projection=32)
    tiny = Architecture(
        unet=UNetShape(
            channels=(16, 32, 32),
            transformer_layers=(1, 1, 1),
            heads=(1, 2, 2),
            layers_per_level=1,
            norm_groups=8,
            size_embedding=8,
            latent_size=8,
        ),
        vae=VAEShape(channels=(8, 16, 16), layers_per_level=1, norm_groups=4, latent_channels=4, pixels=32),
        text_encoder_1=text_encoder,
        text_encoder_2=text_encoder,
        vision=VisionShape(width=32, layers=2, heads=2, patch=8, pixels=32),
        positions=32,
    )
    tokenizers = (load_tokenizer(SHIPPED["nano"] / "tokenizer"), load_tokenizer(SHIPPED["nano"] / "tokenizer_2"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components = Components(
            build_unet(tiny).eval(),
            build_vae(tiny),
            build_text_encoders(tiny, tokenizers),
            Record(weighting={"kind": "min_snr", "form": "augmented", "gamma": 5.0}, native_pixels=32),
            build_vision(tiny).eval(),
        )
    folder = tmp_path_factory.mktemp("models") / "random-nano"
    save_components(components, folder)
    return folder


@pytest.fixture(scope="session")
def steering(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`edges` (ControlNet), `sketch` (T2I-Adapter), `likeness.safetensors` (IP-Adapter), `ink.safetensors` (LoRA)."""
    import torch
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


def _likeness(unet: Any) -> dict[str, Any]:
    """The tensors of an IP-Adapter for this UNet, random."""
    import torch

    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    tensors: dict[str, Any] = {}
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
