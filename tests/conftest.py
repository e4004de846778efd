"""What tests of several rooms share: a whole model, small enough to draw an image in a moment."""

from __future__ import annotations

import os
from pathlib import Path

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
