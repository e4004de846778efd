"""One file for every program: what ours holds, what it gives back, and how files of others are understood."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model import foreign, modelspec
from terminus.model.architecture import SDXL, Architecture, TextEncoderShape, UNetShape, VAEShape
from terminus.model.components import (
    Components,
    load_components,
    load_single_file,
    load_text_encoders,
    load_vae,
    save_components,
)
from terminus.model.convert import convert
from terminus.model.detect import detect
from terminus.model.header import Header, TensorInfo, read_header
from terminus.model.keys import clip_map, open_clip_map, unet_map, vae_map
from terminus.model.parts import check_networks
from terminus.model.record import Record, Schedule
from terminus.model.single_file import read_networks, read_single_file
from terminus.model.text import build_text_encoders
from terminus.model.text_encoders import older_keys
from terminus.model.unet import build_unet
from terminus.model.vae import build_vae
from terminus.model.vocabulary import clip_tokenizers, clip_vocabulary

SMALL = Architecture(
    # SDXL's levels, layers and tokenizers; its widths divided by forty.
    unet=UNetShape((8, 16, 16), (1, 2, 3), (1, 2, 2), 2, norm_groups=4, size_embedding=4, latent_size=8),
    vae=VAEShape((8, 8, 16, 16), 2, norm_groups=4, latent_channels=4, pixels=64),
    text_encoder_1=TextEncoderShape(8, 2, 2, 16, "quick_gelu", 8),
    text_encoder_2=TextEncoderShape(12, 2, 2, 16, "gelu", 12),
    vision=None,
    positions=77,
)


@pytest.fixture(scope="module")
def ours(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "nano-vpred.safetensors"
    convert(random_nano, path)
    return path


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "small"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text = build_text_encoders(SMALL, clip_tokenizers())
        components = Components(build_unet(SMALL), build_vae(SMALL), text, Record())
    save_components(components, folder)
    return folder


@pytest.fixture
def as_sdxl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing has 7 GB; what is inferred from shapes is inferred from these just as well."""
    monkeypatch.setattr(foreign, "SDXL", SMALL)
    monkeypatch.setattr(modelspec, "SDXL", SMALL)


@pytest.fixture(scope="module")
def plain(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As other programs write SDXL: tensors alone, constants and all."""
    tmp_path = tmp_path_factory.mktemp("plain")
    convert(small_folder, tmp_path / "ours-vpred.safetensors")
    tensors = load_file(tmp_path / "ours-vpred.safetensors")
    tensors = {name: value for name, value in tensors.items() if name not in ("v_pred", "ztsnr", "alphas_cumprod")}
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    save_file(tensors, tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def change(path: Path, edit: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], **metadata: str) -> Path:
    """A copy beside `path` with other tensors, and the metadata that it had."""
    stored = dict(read_header(path).metadata) | metadata
    target = path.with_name("changed.safetensors")
    save_file(dict(edit(load_file(path))), target, metadata=stored)
    return target


def networks(components: Components) -> dict[str, Tensor]:
    parts = {"unet": components.unet, "vae": components.vae.autoencoder, "vision": components.vision}
    parts |= {"one": components.text_encoders.text_encoder_1, "two": components.text_encoders.text_encoder_2}
    return {f"{n}.{k}": v for n, part in parts.items() if part is not None for k, v in part.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_our_file_is_the_folder(random_nano: Path, ours: Path):
    folder, file = load_components(random_nano), load_components(ours)
    assert same(networks(folder), networks(file))
    assert file.record == folder.record
    assert file.vision is not None
    assert file.native_pixels == folder.native_pixels == 32
    for one, other in ((folder.text_encoders, file.text_encoders),):
        assert torch.equal(one.encode(["a red apple"]).pooled, other.encode(["a red apple"]).pooled)
    assert not any(parameter.requires_grad for parameter in file.unet.parameters())
    assert not file.unet.training


def test_parts_of_a_file_load_alone(random_nano: Path, ours: Path):
    assert load_vae(ours).id == load_vae(random_nano).id
    assert same(
        load_text_encoders(ours).text_encoder_1.state_dict(),
        load_text_encoders(random_nano).text_encoder_1.state_dict(),
    )


def test_what_the_file_says_of_itself(ours: Path):
    header = read_header(ours)
    said = {key: value for key, value in header.metadata.items() if key != "terminus"}
    assert said.pop("modelspec.hash_sha256") == f"0x{hashlib.sha256(ours.read_bytes()[header.start :]).hexdigest()}"
    assert said == {
        "format": "pt",
        "modelspec.architecture": "terminus-reduced-sdxl",
        "modelspec.implementation": "sgm",
        "modelspec.predict_key": "v",
        "modelspec.prediction_type": "v-zsnr",
        "modelspec.resolution": "32x32",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "random-nano",
        "modelspec.usage_hint": "trailing timesteps (sgm_uniform), guidance rescale 0.7",
        "ss_min_snr_gamma": "5.0",
        "ss_v2": "False",
        "ss_zero_terminal_snr": "True",
    }
    assert not any(name.startswith("edm") for name in header.tensors)
    assert [header.tensors[name].shape for name in ("v_pred", "ztsnr", "alphas_cumprod")] == [(1,), (1,), (1000,)]
    assert {header.tensors[name].dtype for name in ("v_pred", "ztsnr", "alphas_cumprod")} == {"F32"}


def test_the_library_reads_what_we_write(ours: Path):
    with safe_open(ours, framework="pt") as file:
        assert set(file.keys()) == read_header(ours).tensors.keys()
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("zero_terminal", [True, False])
def test_the_table_is_the_schedule(zero_terminal: bool):
    schedule = Schedule(zero_terminal=zero_terminal)
    true = NoiseSchedule.scaled_linear()
    expected = (true.with_zero_terminal_snr() if zero_terminal else true).alphas_cumprod.float()
    table = modelspec.alphas_cumprod(schedule)
    assert torch.equal(table[:-1], expected[:-1])
    last = torch.tensor(4.8973451890853435e-08) if zero_terminal else expected[-1]
    assert table[-1] == last
    assert ((table > 0) & (table <= 1) & torch.isfinite(table)).all()


@pytest.mark.parametrize(
    ("schedule", "marks", "says"),
    [
        (Schedule(), {"v_pred", "ztsnr", "alphas_cumprod"}, "v-zsnr"),
        (Schedule(zero_terminal=False), {"v_pred", "alphas_cumprod"}, "v"),
        (Schedule("epsilon", zero_terminal=False), {"alphas_cumprod"}, "epsilon"),
        (Schedule(timesteps=500), {"v_pred", "ztsnr"}, "v-zsnr"),
        (Schedule("flow", shift=2.0), {"rectified_flow"}, "flow"),
    ],
)
def test_only_what_is_recorded_is_marked(
    random_nano: Path, tmp_path: Path, schedule: Schedule, marks: set[str], says: str
):
    components = load_components(random_nano)
    save_components(replace(components, record=replace(components.record, schedule=schedule)), tmp_path / "model")
    name = "vpred" if schedule.prediction == "velocity" else "eps"
    written = convert(tmp_path / "model", tmp_path / f"{name}.safetensors")
    header = read_header(written.target)
    assert {name for name in header.tensors if "." not in name} == marks
    assert header.metadata["modelspec.prediction_type"] == written.says == says
    assert load_components(written.target).record.schedule == schedule


@pytest.mark.usefixtures("as_sdxl")
def test_a_file_of_others_is_understood_from_its_shapes(small_folder: Path, plain: Path):
    components = load_components(plain)
    expected = load_components(small_folder)
    assert same(networks(components), networks(expected))
    assert components.record == Record(Schedule("epsilon", zero_terminal=False))
    assert components.vision is None
    assert components.vae.scale == 0.13025
    assert components.unet.config["attention_head_dim"] == [1, 2, 2]
    first, second = components.text_encoders.tokens(["a photo of a cat"])
    assert first[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert second[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert first.shape == second.shape == (1, 77)
    # As in the folder, for the text encoders are the same: what is pooled and what is padded did not change.
    assert torch.equal(
        components.text_encoders.encode(["a cat"]).pooled, expected.text_encoders.encode(["a cat"]).pooled
    )


@pytest.mark.usefixtures("as_sdxl")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_of_others_is_read(plain: Path, dtype: torch.dtype):
    path = change(plain, lambda t: {k: v.to(dtype) if v.is_floating_point() else v for k, v in t.items()})
    expected = {k: v.to(dtype).float() for k, v in networks(load_components(plain)).items()}
    assert same(networks(load_components(path)), expected)


@pytest.mark.usefixtures("as_sdxl")
@pytest.mark.parametrize("marker", [torch.zeros(0), torch.ones(1), torch.tensor(1.0), torch.zeros(1).half()])
def test_markers_of_others_decide_the_schedule(plain: Path, marker: torch.Tensor):
    path = change(plain, lambda tensors: tensors | {"v_pred": marker, "ztsnr": marker.clone()})
    assert load_components(path).record.schedule == detect(path).schedule == Schedule()


@pytest.mark.usefixtures("as_sdxl")
def test_nine_channels(small_folder: Path, plain: Path, caplog: pytest.LogCaptureFixture):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    path = change(plain, lambda t: t | {name: torch.cat([t[name], torch.ones(8, 5, 3, 3).half()], dim=1)})
    unet = load_components(path).unet
    assert unet.config["in_channels"] == 9
    assert unet.conv_in.weight.shape[1] == 9
    with caplog.at_level(logging.WARNING, "terminus"):
        header = read_header(convert(path, path.with_name("x.safetensors")).target)
    assert (
        "x.safetensors: SD.Next decides by the file's name; x-xl-inpaint.safetensors would tell it inpainting"
        in caplog.text
    )
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base-inpainting"


def first(name: str) -> str:
    return f"conditioner.embedders.0.transformer.{name}"


ADDED = {
    "ComfyUI": {first("text_projection.weight"): (8, 8), "conditioner.embedders.0.logit_scale": ()},
    "a trained VAE": {"first_stage_model.loss.logvar": (), "first_stage_model.model_ema.decay": ()},
    "all in one": {"extra.controlnet.weight": (3,), "embeddings.style": (2, 8)},
}


@pytest.mark.usefixtures("as_sdxl")
@pytest.mark.parametrize("program", ADDED)
def test_what_other_programs_add_is_told_and_does_no_harm(plain: Path, program: str, caplog: pytest.LogCaptureFixture):
    path = change(plain, lambda tensors: tensors | {name: torch.ones(shape) for name, shape in ADDED[program].items()})
    expected, found = read_single_file(plain).tensors, read_single_file(path).tensors
    assert found.keys() == expected.keys()
    assert all(same(tensors, expected[name]) for name, tensors in found.items())
    told = [record.getMessage() for record in caplog.records]
    unused = [name for name in sorted(ADDED[program]) if not name.endswith("logit_scale")]
    assert told == [f"changed.safetensors: Ignored {len(unused)} tensors that belong to no SDXL network, "
                    f"the first is {unused[0]!r}"]  # fmt: skip


@pytest.mark.usefixtures("as_sdxl")
def test_a_first_text_encoder_of_newer_names(plain: Path):
    path = change(
        plain, lambda tensors: {name.replace(first("text_model."), first("")): v for name, v in tensors.items()}
    )
    expected, found = read_single_file(plain).tensors, read_single_file(path).tensors
    assert all(same(tensors, expected[name]) for name, tensors in found.items())
    check_networks(read_single_file(path))


def in_fp8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of the UNet in 8 bits, as ComfyUI stores them to save space."""
    return {
        name: value.to(torch.float8_e4m3fn) if name.startswith("model.") and value.ndim > 1 else value
        for name, value in tensors.items()
    }


@pytest.mark.usefixtures("as_sdxl")
def test_plain_fp8_is_read_as_the_numbers_that_it_holds(plain: Path, tmp_path: Path):
    path, wide = change(plain, in_fp8), tmp_path / "wide.safetensors"
    save_file({n: v.float() if v.dtype == torch.float8_e4m3fn else v for n, v in load_file(path).items()}, wide)
    found, expected = read_networks(path, ["unet"])[0]["unet"], read_networks(wide, ["unet"])[0]["unet"]
    assert same(found.state_dict(), expected.state_dict())
    kept = load_file(convert(path, tmp_path / "kept.safetensors").target)
    assert {name for name, value in kept.items() if value.dtype == torch.float8_e4m3fn} == {
        name for name, value in load_file(path).items() if value.dtype == torch.float8_e4m3fn
    }
    halves = load_file(convert(path, tmp_path / "halves.safetensors", precision="fp16").target)
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(halves[name].float(), load_file(wide)[name])
    bad = load_file(path)[name]
    bad.view(torch.uint8)[0] = 0x7F  # this format's only NaN
    with pytest.raises(UserError, match=r"conv_out\.weight holds NaN"):
        read_networks(change(plain, lambda tensors: in_fp8(tensors) | {name: bad}), ["unet"])


@pytest.mark.usefixtures("as_sdxl")
@pytest.mark.parametrize("scale", ["out.2.scale_weight", "out.2.weight_scale", "scaled_fp8", "out.2.comfy_quant"])
def test_numbers_that_need_a_scale_are_refused(plain: Path, scale: str):
    path = change(plain, lambda tensors: in_fp8(tensors) | {f"model.diffusion_model.{scale}": torch.ones(1)})
    with pytest.raises(UserError, match=rf"weights are quantised.*{scale}.*fp16 or bf16 file"):
        load_components(path)


def averages(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    prefix = "model.diffusion_model."
    result = {name: value for name, value in tensors.items() if keep or not name.startswith(prefix)}
    for name, value in tensors.items():
        if name.startswith(prefix):
            result["model_ema." + name.removeprefix("model.").replace(".", "")] = value + 1
    return result | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}


@pytest.mark.usefixtures("as_sdxl")
def test_moving_averages(plain: Path, caplog: pytest.LogCaptureFixture):
    before = load_components(plain).unet.conv_in.bias
    both = change(plain, lambda tensors: averages(tensors, keep=True))
    with caplog.at_level(logging.INFO, "terminus"):
        assert torch.equal(load_components(both).unet.conv_in.bias, before)
    assert "of a moving average (EMA) are not used" in caplog.text
    assert torch.equal(load_single_file(both, ema=True).unet.conv_in.bias, (before.half() + 1).float())
    alone = change(plain, lambda tensors: averages(tensors, keep=False))
    assert torch.equal(load_components(alone).unet.conv_in.bias, (before.half() + 1).float())
    with pytest.raises(UserError, match="holds no moving average"):
        load_single_file(plain, ema=True)


@pytest.mark.usefixtures("as_sdxl")
def test_tensors_that_no_network_has_are_told(plain: Path, caplog: pytest.LogCaptureFixture):
    path = change(plain, lambda tensors: tensors | {"../../etc/x": torch.zeros(1), "denoiser.sigmas": torch.zeros(3)})
    with caplog.at_level(logging.WARNING, "terminus"):
        load_components(path)
    assert "Ignored 1 tensors that belong to no SDXL network, the first is '../../etc/x'" in caplog.text
    inside = change(plain, lambda tensors: tensors | {"model.diffusion_model.odd": torch.zeros(1)})
    with pytest.raises(UserError, match="1 keys of the UNet have no name in diffusers: odd"):
        load_components(inside)


@pytest.mark.parametrize("network", ["unet", "vae", "first text encoder", "second text encoder"])
@pytest.mark.usefixtures("as_sdxl")
def test_a_file_that_lacks_a_weight_or_a_network(plain: Path, network: str):
    prefix = {"unet": unet_map(), "vae": vae_map(), "first text encoder": clip_map()}.get(
        network, open_clip_map()
    ).prefix
    last = max(name for name in load_file(plain) if name.startswith(prefix) and "position_ids" not in name)
    path = change(plain, lambda tensors: {name: value for name, value in tensors.items() if name != last})
    with pytest.raises(UserError, match="keys are missing"):
        load_components(path)
    path = change(plain, lambda tensors: {n: value for n, value in tensors.items() if not n.startswith(prefix)})
    with pytest.raises(UserError, match="looks like something else" if network == "unet" else "This file has no "):
        load_components(path)


def header_of(entries: Iterable[tuple[str, tuple[int, ...]]]) -> Header:
    tensors = {name: TensorInfo("F16", shape, (0, 0)) for name, shape in entries}
    return Header(Path("model.safetensors"), tensors, {}, 0)


@pytest.fixture(scope="module")
def real() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published SDXL."""
    with torch.device("meta"):
        text, unet, vae = build_text_encoders(SDXL, clip_tokenizers()), build_unet(SDXL), build_vae(SDXL).autoencoder
    layouts = [(unet_map(), unet.state_dict()), (vae_map(), vae.state_dict())]
    layouts += [(clip_map(), older_keys(text.text_encoder_1.state_dict()))]
    layouts += [(open_clip_map(), older_keys(text.text_encoder_2.state_dict()))]
    return [(name, tuple(value.shape)) for layout, state in layouts for name, value in layout.to_ldm(state).items()]


def test_the_configurations_of_sdxl(real: list[tuple[str, tuple[int, ...]]]):
    """Against the published ones, the values in which they differ from the defaults of their classes."""
    configs = foreign.infer_configs(header_of(real))
    assert {key: configs["unet"][key] for key in ("sample_size", "attention_head_dim", "transformer_layers_per_block",
            "cross_attention_dim", "projection_class_embeddings_input_dim", "use_linear_projection")} == {
        "sample_size": 128, "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
    }  # fmt: skip
    assert {key: configs["vae"][key] for key in ("scaling_factor", "force_upcast", "sample_size")} == {
        "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024,
    }  # fmt: skip
    assert [configs[f"text_encoder{n}"]["hidden_act"] for n in ("", "_2")] == ["quick_gelu", "gelu"]
    assert configs["text_encoder_2"]["projection_dim"] == 1280


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"], "width 768 .*1.x"),
        (["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"], "an adapter.*sample MODEL --lora FILE"),
        (["unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"], "an adapter"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["clip_g"], "textual inversion"),
        (["down_blocks.0.resnets.0.conv1.weight"], "layout of diffusers"),
        (["decoder.conv_in.weight"], "autoencoder alone"),
        (["first_stage_model.decoder.conv_in.weight"], "autoencoder alone"),
        (["first_stage_model.decoder.conv_in.weight", "model.diffusion_model.joint_blocks.0.x"], "Diffusion 3"),
        (["input_blocks.0.0.weight"], "a UNet alone"),
        (["../../etc/x"], "something else"),
        ([], "an empty file"),
    ],
)
def test_what_is_not_sdxl_is_named(names: list[str], words: str):
    with pytest.raises(UserError, match=words) as caught:
        foreign.infer_configs(header_of((name, (640, 768)) for name in names))
    assert "\n" not in str(caught.value)


def test_the_refiner_and_a_unet_alone_are_named(real: list[tuple[str, tuple[int, ...]]]):
    def narrow(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], 1280) if name.endswith("attn2.to_k.weight") else shape

    with pytest.raises(UserError, match=r"width 1280 \(the SDXL refiner"):
        foreign.infer_configs(header_of((name, narrow(name, shape)) for name, shape in real))
    with pytest.raises(UserError, match="This file has no VAE and no first text encoder and no second"):
        foreign.infer_configs(header_of(entry for entry in real if entry[0].startswith("model.")))


def test_every_key_of_the_published_file_has_a_place_of_its_own_shape(real: list[tuple[str, tuple[int, ...]]]):
    """All 2,515 keys on the meta device: nothing is left over, and each network is whole."""
    stored = {name: torch.empty(shape, device="meta") for name, shape in real}
    stored[first("text_model.embeddings.position_ids")] = torch.empty(1, 77, device="meta")
    stored["conditioner.embedders.1.model.logit_scale"] = torch.empty((), device="meta")
    layouts = {"unet": unet_map(), "vae": vae_map(), "text_encoder": clip_map(), "text_encoder_2": open_clip_map()}
    assert len(stored) == 2515
    assert all(name.startswith(tuple(layout.prefix for layout in layouts.values())) for name in stored)
    with torch.device("meta"):
        text = build_text_encoders(SDXL, clip_tokenizers())
        modules = {"unet": build_unet(SDXL), "vae": build_vae(SDXL).autoencoder}
    states = {name: module.state_dict() for name, module in modules.items()}
    states |= {"text_encoder": older_keys(text.text_encoder_1.state_dict())}
    states |= {"text_encoder_2": older_keys(text.text_encoder_2.state_dict())}
    for name, layout in layouts.items():
        found = {key: value.shape for key, value in layout.from_ldm(stored).items()}
        assert found == {key: value.shape for key, value in states[name].items()}


def test_a_real_header_without_the_numbers(real: list[tuple[str, tuple[int, ...]]], tmp_path: Path):
    """All of SDXL in a file with a hole for its numbers: what it is costs no reading of them."""
    end, header = 0, {}
    for name, shape in real:
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = tmp_path / "sdxl-vpred.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    assert foreign.infer_configs(read_header(path)).keys() == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert detect(path).schedule.prediction == "velocity"


def test_the_vocabulary_of_clip():
    """The ids of the last sentence are those that the tokenizer of open_clip 3.3 gives."""
    first, second = clip_tokenizers()
    assert len(first) == len(clip_vocabulary()) == 49408
    assert clip_vocabulary()["!"] == 0
    assert (first.pad_token_id, second.pad_token_id, first.bos_token_id, first.eos_token_id) == (49407, 0, 49406, 49407)
    assert first("Naïve  CAFÉ, it's 3 日本 🍎!").input_ids == [
        *(49406, 1097, 35689, 563, 15304, 267, 585, 568, 274, 39121, 19277, 361, 2011, 236, 256, 49407)
    ]


def test_the_header_is_parsed_once(ours: Path, monkeypatch: pytest.MonkeyPatch):
    parsed: list[Path] = []

    def counted(path: Path) -> Header:
        parsed.append(path)
        return read_header(path)

    for module in ("single_file", "detect", "weights"):
        monkeypatch.setattr(f"terminus.model.{module}.read_header", counted)
    read_single_file(ours)
    assert parsed == [ours]
