"""One line of a configuration may not keep a computer busy, fill its memory, or spoil images without a word.

Each key that stands for a number gets numbers that no model has, in a folder and in a single file's metadata. Loading
then ends in one paragraph or in a model that draws, within a limit of time and of memory.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.errors import UserError
from terminus.model import counts, limits
from terminus.model.components import Components, load_components, load_text_encoders, load_vae
from terminus.model.convert import convert
from terminus.model.header import read_header
from terminus.model.record import load_record
from terminus.model.single_file import read_configs, read_networks
from terminus.model.text import TextEncoders
from terminus.model.text_encoders import load_vision
from terminus.model.unet import predict
from terminus.model.vae import VAE
from terminus.model.weights import SHIPPED

SECONDS, BYTES = 10.0, 512 * 2**20
"""Of processor time and of memory that loading a model of 1 MB may take, whatever its files say."""
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2", "vision")
HUGE: tuple[object, ...] = (0, -1, 129, 10**6, 10**30, 0.5, True, "x", None, [], [10**6], {})
KEYS = [
    *(("unet", key) for key in (
        "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block",
        "transformer_layers_per_block", "reverse_transformer_layers_per_block", "cross_attention_dim",
        "attention_head_dim", "num_attention_heads", "addition_time_embed_dim", "addition_embed_type_num_heads",
        "projection_class_embeddings_input_dim", "encoder_hid_dim", "num_class_embeds", "time_embedding_dim",
        "time_cond_proj_dim", "norm_num_groups", "norm_eps", "conv_in_kernel", "conv_out_kernel", "freq_shift",
        "downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor", "dropout",
    )),
    *(("vae", key) for key in (
        "sample_size", "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block",
        "norm_num_groups", "scaling_factor", "shift_factor", "latents_mean", "latents_std",
    )),
    *((text_encoder, key) for text_encoder in ("text_encoder", "text_encoder_2", "vision") for key in (
        "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
        "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor", "num_labels",
    )),
    *((text_encoder, key) for text_encoder in ("text_encoder", "text_encoder_2") for key in (
        "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    )),
    *(("vision", key) for key in ("image_size", "patch_size", "num_channels")),
]  # fmt: skip


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Ends a test that hangs, and fails one that takes much memory; the peak never falls, so it is bounded as it is."""

    def late(*_: object) -> None:
        raise TimeoutError(what)

    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    previous = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < BYTES, what
    assert time.process_time() - begun < SECONDS, what


@pytest.fixture(scope="module")
def folder(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose JSON the tests change and put back."""
    return Path(shutil.copytree(random_nano, tmp_path_factory.mktemp("limits") / "model"))


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return convert(folder, folder.with_name("x-vpred.safetensors")).target


@contextmanager
def changed(path: Path, values: dict[str, object]) -> Iterator[None]:
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | values))
    try:
        yield
    finally:
        path.write_text(text)


def relabelled(file: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same tensors with another `terminus` in the metadata."""
    stored = dict(read_header(file).metadata)
    content = json.loads(stored["terminus"])
    change(content)
    save_file(load_file(file), target, metadata=stored | {"terminus": json.dumps(content)})
    return target


def outcome(use: Callable[[], object]) -> UserError | None:
    """The paragraph that it ends in; anything but a UserError fails the test."""
    error: UserError | None = None
    try:
        use()
    except UserError as raised:
        error = raised
    if error is not None:
        assert "\n" not in str(error)
        assert len(str(error)) < 1500
    return error


def draws(loaded: object) -> None:
    """What loaded is used: a VAE decodes to finite numbers, text encoders read a caption, a UNet has a size to draw
    at.
    """
    with torch.no_grad():
        if isinstance(loaded, VAE):
            assert torch.isfinite(loaded.decode(torch.zeros(1, loaded.channels, 4, 4))).all()
        elif isinstance(loaded, TextEncoders):
            assert torch.isfinite(loaded.encode(["a red apple"]).context).all()
        elif isinstance(loaded, Components):
            size, text = loaded.native_pixels, loaded.text_encoders.encode([""])
            assert size <= limits.PIXELS
            ids = time_ids([MicroConditioning.uncropped(Size(size, size))], torch.device("cpu"))
            x = torch.zeros(1, loaded.vae.channels, 8, 8)
            assert torch.isfinite(predict(loaded.unet, x, torch.tensor([999]), text, ids)).all()
        else:
            assert isinstance(loaded, CLIPVisionModelWithProjection)
            side = loaded.config.image_size
            assert torch.isfinite(loaded(pixel_values=torch.zeros(1, 3, side, side)).image_embeds).all()


LOADERS: dict[str, Callable[[Path], object]] = {
    "unet": load_components,
    "vae": load_vae,
    "text_encoder": load_text_encoders,
    "text_encoder_2": load_text_encoders,
    "vision": lambda folder: load_vision(folder / "vision"),
}


@pytest.mark.parametrize(("network", "key"), KEYS)
def test_no_number_in_a_folder_does_harm(folder: Path, network: str, key: str):
    for value in HUGE:
        with changed(folder / network / "config.json", {key: value}), bounded(f"{network}.{key} = {value!r}"):
            loaded: list[object] = []
            if outcome(lambda loaded=loaded: loaded.append(LOADERS[network](folder))) is None:
                draws(loaded[0])


@pytest.mark.parametrize(("network", "key"), KEYS)
def test_no_number_in_the_metadata_of_a_file_does_harm(file: Path, tmp_path: Path, network: str, key: str):
    for value in (10**6, "x"):
        target = relabelled(
            file, tmp_path / "y-vpred.safetensors", lambda c, value=value: c["configs"][network].update({key: value})
        )
        with bounded(f"{network}.{key} = {value!r}"):
            outcome(lambda target=target: read_configs(read_header(target)))


LISTED = [
    ("text_encoder", "num_hidden_layers", 1_000_000, "num_hidden_layers is 1000000"),
    ("text_encoder_2", "num_hidden_layers", 100, "num_hidden_layers is 100, the weights have 2 layers"),
    ("vision", "num_hidden_layers", 1_000_000, "num_hidden_layers is 1000000"),
    ("unet", "layers_per_block", 1_000_000, "layers_per_block is 1000000"),
    ("unet", "layers_per_block", 16, "layers_per_block is 16, the weights have 1 residual blocks"),
    ("unet", "transformer_layers_per_block", 1_000_000, "transformer_layers_per_block is 1000000"),
    ("unet", "transformer_layers_per_block", 20, "transformer_layers_per_block is 20, the weights have 1 transformer"),
    ("unet", "sample_size", 20_000, "sample_size is 20000"),
    ("unet", "sample_size", 0, "sample_size is 0"),
    ("unet", "sample_size", 1e9, "sample_size is 1000000000.0"),
    ("vae", "block_out_channels", 7, "block_out_channels is 7"),
    ("unet", "block_out_channels", 7, "block_out_channels is 7"),
    ("vae", "latents_mean", 0.5, "latents_mean is 0.5"),
    ("vae", "layers_per_block", 1_000_000, "layers_per_block is 1000000"),
    ("text_encoder", "vocab_size", 900_000, "vocab_size is 900000, the weights have"),
    ("text_encoder", "eos_token_id", 999_999, "eos_token_id is 999999, the weights have"),
    ("vae", "scaling_factor", "x", "scaling_factor is 'x'"),
    ("vae", "scaling_factor", 0, "scaling_factor is 0"),
    ("vae", "scaling_factor", None, "scaling_factor is None"),
    ("vae", "scaling_factor", -0.13, "scaling_factor is -0.13"),
    ("vae", "shift_factor", 0.1, "shift_factor is 0.1"),
    ("vae", "latents_mean", [0.0] * 4, "Only one of latents_mean and latents_std"),
    ("vae", "latents_std", [0.0] * 4, "latents_std is"),
    ("unet", "addition_embed_type", None, "addition_embed_type is None"),
    ("unet", "class_embed_type", "identity", "class_embed_type is 'identity'"),
]


@pytest.mark.parametrize(("network", "key", "value", "words"), LISTED)
def test_what_is_refused_is_named(folder: Path, network: str, key: str, value: object, words: str):
    with changed(folder / network / "config.json", {key: value}), bounded(key):
        for use in (lambda: load_components(folder), lambda: convert(folder, folder.with_name("never"))):
            error = outcome(use)
            assert error is not None
            assert words in str(error)


@pytest.mark.parametrize(("network", "key", "value", "words"), LISTED)
def test_the_same_in_the_metadata_of_a_file(
    file: Path, tmp_path: Path, network: str, key: str, value: object, words: str
):
    target = relabelled(file, tmp_path / "y-vpred.safetensors", lambda c: c["configs"][network].update({key: value}))
    with bounded(key):
        error = outcome(lambda: read_networks(target, [network]))
    assert error is not None
    # Of another number of layers the names in the file have no meaning, which is said as early.
    assert words in str(error) or (key == "layers_per_block" and "have no name in diffusers" in str(error))


def test_a_size_that_nobody_draws(folder: Path):
    """Where the record does not say how large the model draws, the UNet's `sample_size` times the VAE's factor is."""
    size = {"sample_size": 4096}
    with changed(folder / "terminus.json", {"native_pixels": None}), changed(folder / "unet" / "config.json", size):
        assert "trained on images of 16384 pixels" in str(outcome(lambda: load_components(folder)))


def test_every_number_of_the_shipped_model_has_a_limit():
    for network in NETWORKS:
        config = json.loads((SHIPPED["nano"] / network / "config.json").read_text())
        for key, value in config.items():
            first = value[0] if isinstance(value, list) and value else value
            if not key.startswith("_") and isinstance(first, int | float) and not isinstance(first, bool):
                assert key in limits.LIMITS, f"{network}.{key}"


def test_a_record_of_images_that_nobody_draws(folder: Path):
    for value in (1e12, 10**30, -5, 0, "x", 4097):
        with changed(folder / "terminus.json", {"native_pixels": value}), bounded(f"native_pixels = {value!r}"):
            error = outcome(lambda: load_record(folder))
            assert error is not None
            assert "This record is not readable" in str(error)


def test_large_files_beside_the_weights(folder: Path):
    for name, words in (("tokenizer/merges.txt", "merges.txt has 536870912 bytes"),
                        ("tokenizer/vocab.json", "536870912 bytes, more than any model needs")):  # fmt: skip
        path = folder / name
        kept = path.read_bytes()
        with path.open("r+b") as sparse:
            sparse.truncate(512 * 2**20)
        try:
            with bounded(name):
                error = outcome(lambda: load_components(folder))
                assert error is not None
                assert words in str(error)
        finally:
            path.write_bytes(kept)


def test_a_prompt_of_more_tokens_than_can_be_written_down(folder: Path):
    with changed(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": 10**400}):
        assert "gives a number of 401 digits tokens" in str(outcome(lambda: load_text_encoders(folder)))


def test_many_merges_are_refused(folder: Path):
    path = folder / "tokenizer" / "merges.txt"
    kept = path.read_bytes()
    path.write_bytes(b"a b\n" * (limits.VOCABULARY + 1))
    try:
        with bounded("merges"):
            assert "at most 1000000 are read" in str(outcome(lambda: load_components(folder)))
    finally:
        path.write_bytes(kept)


def test_layers_without_numbers_in_them_count_for_nothing(tmp_path: Path):
    """A header may name 100,000 layers of empty tensors."""
    names = [f"encoder.layers.{n}.layer_norm1.weight" for n in range(100_000)]
    with bounded("empty layers"), pytest.raises(UserError, match="num_hidden_layers is 100000"):
        counts.check_counts("CLIPTextModel", {"num_hidden_layers": 100_000}, dict.fromkeys(names, (0,)), "here")


def test_latents_are_centred_as_diffusers_does(folder: Path):
    """`StableDiffusionXLPipeline` decodes latents * latents_std / scaling_factor + latents_mean."""
    mean, std = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]
    plain = load_components(folder).vae
    with changed(folder / "vae" / "config.json", {"latents_mean": mean, "latents_std": std}):
        vae = load_components(folder).vae
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scale = plain.scale
    raw = latents * torch.tensor(std).view(1, 4, 1, 1) / scale + torch.tensor(mean).view(1, 4, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(latents), plain.decode(raw * scale))
        moments = vae.encode(torch.zeros(1, 3, 16, 16))
        x0 = vae.latents(moments, torch.zeros_like(moments.mean))
        torch.testing.assert_close(vae.decode(x0), plain.decode(moments.mean * scale))
    assert math.isclose(vae.scale, scale)


def test_a_text_encoder_takes_from_its_configuration_only_what_it_is_built_from(folder: Path):
    """`return_dict: false` would make it answer otherwise, `num_labels` fill the memory with names."""
    strange = {"return_dict": False, "num_labels": 10**9, "output_hidden_states": True, "id2label": {"0": "a"}}
    with changed(folder / "text_encoder_2" / "config.json", strange), bounded("num_labels"):
        draws(load_text_encoders(folder))


def test_safe_open_agrees_about_the_shapes(file: Path):
    """The counts are those of the header, which is what the tensors have."""
    header = read_header(file)
    with safe_open(file, framework="pt") as stored:
        assert {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()} == {  # noqa: SIM118
            name: info.shape for name, info in header.tensors.items()
        }
