"""ControlNet, T2I-Adapter and IP-Adapter: what diffusers' pipelines draw with them, and what those cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.errors import UserError
from terminus.model.components import Components, load_components
from terminus.model.control import Control, ControlInterval, combined, load_control
from terminus.model.image_prompt import (
    ImageFeatures,
    ImagePrompts,
    clip_pixels,
    encode_images,
    read_image_prompt,
)
from terminus.model.record import noise_schedule
from terminus.model.unet import predict
from terminus.sampling import grid
from terminus.sampling.denoiser import velocity_denoiser
from terminus.sampling.guidance import classifier_free, rescaled
from terminus.sampling.solvers import SOLVERS

# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, SEEDS, STEPS, GUIDANCE = ["a red apple", ""], [1, 2], 6, 4.0
SIZE = Size(height=32, width=48)


@pytest.fixture(scope="module")
def loaded(random_nano: Path) -> Components:
    return load_components(random_nano)


@pytest.fixture
def components(loaded: Components) -> Components:
    """With a UNet to change."""
    return replace(loaded, unet=deepcopy(loaded.unet))


def randomize(network: nn.Module, scale: float = 0.1) -> nn.Module:
    """The zero convolutions too, which would make any control agree with any other."""
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data += scale * torch.randn(value.shape, generator=generator)
    return network


@pytest.fixture(scope="session")
def folders(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("controls")
    unet = load_components(random_nano).unet
    with torch.random.fork_rng():
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 24))
        adapter = T2IAdapter(3, [16, 32, 32, 32], 1, downscale_factor=8, adapter_type="full_adapter_xl")
    randomize(control).save_pretrained(root / "edges")
    randomize(adapter).save_pretrained(root / "sketch")
    return root


def image(seed: int = 0, count: int = 1) -> Tensor:
    return torch.rand(count, 3, SIZE.height, SIZE.width, generator=torch.Generator().manual_seed(seed))


def draw(
    components: Components,
    controls: Sequence[Control] = (),
    rescale: float = 0.0,
    image_embeds: list[Tensor] | None = None,
) -> Tensor:
    """The last latents of a guided Euler run with controls."""
    text = components.text_encoders.encode([*PROMPTS, "", ""])
    ids = time_ids([MicroConditioning.uncropped(SIZE)] * 4, torch.device("cpu"))
    schedule = noise_schedule(components.record.schedule)

    def network(x: Tensor, t: Tensor) -> Tensor:
        x, t = x.repeat(2, 1, 1, 1), t.repeat(2)
        residuals = combined(controls, x, int(t[0]), text, ids)
        with torch.no_grad():
            cond, uncond = predict(components.unet, x, t, text, ids, residuals, image_embeds).chunk(2)
        return rescaled(classifier_free(cond, uncond, GUIDANCE), cond, rescale)

    denoise = velocity_denoiser(network, schedule)
    steps = grid.timesteps(STEPS, schedule.timesteps)
    with torch.no_grad():
        *_, last = SOLVERS["euler"](denoise, schedule, noise(), steps, lambda _: noise())
    return last.x


def noise() -> Tensor:
    return torch.stack([torch.randn(4, 8, 12, generator=runtime.rng(seed, 0, "sampling")) for seed in SEEDS])


def theirs(pipeline, **more: object) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        negative_prompt=["", ""],
        latents=noise(),
        output_type="latent",
        **more,
    ).images


def pipeline(random_nano: Path, cls: type, **more: object):
    base = StableDiffusionXLPipeline.from_pretrained(random_nano, local_files_only=True, dtype=torch.float32)
    parts = {key: value for key, value in base.components.items() if key not in ("image_encoder", "feature_extractor")}
    return cls(**parts, force_zeros_for_empty_prompt=False, **more)


def close(ours: Tensor, expected: Tensor) -> None:
    """As for text to image: theirs starts at a largest sigma of 4096, ours at (alpha, sigma) = (0, 1)."""
    torch.testing.assert_close(ours, expected, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5)])
def test_controlnet_draws_what_diffusers_draws(random_nano: Path, components, folders: Path, start: float, end: float):
    network = ControlNetModel.from_pretrained(folders / "edges", local_files_only=True)
    pipe = pipeline(random_nano, StableDiffusionXLControlNetPipeline, controlnet=network)
    how = {"control_guidance_start": start, "control_guidance_end": end, "controlnet_conditioning_scale": 0.7}
    expected = theirs(pipe, image=image(), **how)
    control = load_control("controlnet", folders / "edges", image(), components, 0.7, ControlInterval(start, end))
    ours = draw(components, [control])
    close(ours, expected)
    assert (ours - draw(components)).abs().max() > 0.05


def test_two_controlnets_add_up_as_in_diffusers(random_nano: Path, components: Components, folders: Path):
    networks = [ControlNetModel.from_pretrained(folders / "edges", local_files_only=True) for _ in range(2)]
    pipe = pipeline(random_nano, StableDiffusionXLControlNetPipeline, controlnet=networks)
    expected = theirs(pipe, image=[image(0), image(1)], controlnet_conditioning_scale=[0.7, 0.3])
    controls = [
        load_control("controlnet", folders / "edges", image(seed), components, scale)
        for seed, scale in ((0, 0.7), (1, 0.3))
    ]
    close(draw(components, controls), expected)


def test_controlnet_with_guidance_rescale(components: Components, folders: Path):
    """Which diffusers' ControlNet pipeline lacks: each step's guided prediction has its conditional's spread."""
    control = load_control("controlnet", folders / "edges", image(), components)
    text = components.text_encoders.encode([*PROMPTS, "", ""])
    ids = time_ids([MicroConditioning.uncropped(SIZE)] * 4, torch.device("cpu"))
    x, t = noise().repeat(2, 1, 1, 1), torch.full((4,), 999)
    with torch.no_grad():
        cond, uncond = predict(components.unet, x, t, text, ids, combined([control], x, 999, text, ids)).chunk(2)
    guided = uncond + GUIDANCE * (cond - uncond)
    by_hand = torch.stack([0.7 * g * c.std() / g.std() + 0.3 * g for g, c in zip(guided, cond, strict=True)])
    torch.testing.assert_close(rescaled(guided, cond, 0.7), by_hand)
    assert (draw(components, [control], 0.7) - draw(components, [control])).abs().max() > 0.05


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("end", [1.0, 0.5])
def test_t2i_adapter_draws_what_diffusers_draws(random_nano, components, folders: Path, rescale: float, end: float):
    network = T2IAdapter.from_pretrained(folders / "sketch", local_files_only=True)
    pipe = pipeline(random_nano, StableDiffusionXLAdapterPipeline, adapter=network)
    how = {"adapter_conditioning_scale": 0.6, "adapter_conditioning_factor": end, "guidance_rescale": rescale}
    expected = theirs(pipe, image=image().repeat(2, 1, 1, 1), **how)
    control = load_control("t2i", folders / "sketch", image(), components, 0.6, ControlInterval(0.0, end))
    ours = draw(components, [control], rescale)
    close(ours, expected)
    assert (ours - draw(components, rescale=rescale)).abs().max() > 0.05


def one_call(components: Components, controls: Sequence[Control], t: int) -> Tensor:
    text = components.text_encoders.encode([*PROMPTS, "", ""])
    ids = time_ids([MicroConditioning.uncropped(SIZE)] * 4, torch.device("cpu"))
    x = noise().repeat(2, 1, 1, 1)
    with torch.no_grad():
        return predict(components.unet, x, torch.full((4,), t), text, ids, combined(controls, x, t, text, ids))


def test_kinds_add_up_and_each_has_its_own_time(components: Components, folders: Path):
    edges = load_control("controlnet", folders / "edges", image(0), components, 0.5, ControlInterval(0.0, 0.5))
    sketch = load_control("t2i", folders / "sketch", image(1), components, 0.5, ControlInterval(0.5, 1.0))
    early, late = (
        [one_call(components, controls, t) for controls in ([edges, sketch], [edges], [sketch], [])] for t in (999, 99)
    )
    both, only_edges, only_sketch, none = early
    close(both, only_edges)
    close(only_sketch, none)
    assert (only_edges - none).abs().max() > 0.01
    both, only_edges, only_sketch, none = late
    close(both, only_sketch)
    close(only_edges, none)
    assert (only_sketch - none).abs().max() > 0.01


def test_an_image_per_row(components: Components, folders: Path):
    t = 500
    for kind, folder in (("controlnet", "edges"), ("t2i", "sketch")):
        pair = load_control(kind, folders / folder, image(0, 2), components)
        each = [load_control(kind, folders / folder, image(0, 2)[k : k + 1], components) for k in range(2)]
        together = one_call(components, [pair], t)
        for k in range(2):
            close(together[k::2], one_call(components, [each[k]], t)[k::2])


@pytest.mark.parametrize("kind", ["controlnet", "t2i"])
def test_scale_zero_is_no_control(components: Components, folders: Path, kind):
    folder = {"controlnet": "edges", "t2i": "sketch"}[kind]
    control = load_control(kind, folders / folder, image(), components, 0.0)
    t = 999
    assert torch.equal(one_call(components, [control], t), one_call(components, [], t))


@pytest.mark.parametrize("steps", [1, 4, 6, 10, 28, 30, 61])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.75), (0.5, 1.0), (0.0, 0.5)])
def test_fractions_mean_steps_whatever_their_number(steps: int, start: float, end: float):
    covered = [ControlInterval(start, end).covers(t, 1000) for t in grid.timesteps(steps, 1000)]
    assert covered == [start <= i / steps < end for i in range(steps)]


# What is wrong


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders, tmp_path / "controls"))


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_spans_that_are_none(start: float, end: float):
    with pytest.raises(UserError, match="The start is before the end"):
        ControlInterval(start, end)


@pytest.mark.parametrize("kind", ["controlnet", "t2i"])
def test_images_that_cannot_be_read(components: Components, folders: Path, kind):
    folder = folders / {"controlnet": "edges", "t2i": "sketch"}[kind]
    for bad in (image()[:, :1], image() * 2 - 1, image() * 255, image() * torch.nan):
        with pytest.raises(UserError, match="reads 3 channels from 0 to 1"):
            load_control(kind, folder, bad, components)


def test_images_of_another_size(components: Components, folders: Path):
    control = load_control("controlnet", folders / "edges", image()[..., :32], components)
    with pytest.raises(UserError, match="The image of edges is 32x32, the latent asks for 48x32"):
        draw(components, [control])
    with pytest.raises(UserError, match="must be multiples of 16"):
        load_control("t2i", folders / "sketch", image()[..., :40], components)


def test_a_controlnet_of_another_unet(components: Components, copy: Path):
    config = json.loads((copy / "edges" / "config.json").read_text())
    (copy / "edges" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 768}))
    tensors = load_file(copy / "edges" / "diffusion_pytorch_model.safetensors")
    for key in tensors:
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            tensors[key] = torch.zeros(len(tensors[key]), 768)
    save_file(tensors, copy / "edges" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="cross_attention_dim of this ControlNet is 768, the UNet's is 64"):
        load_control("controlnet", copy / "edges", image(), components)


def test_a_t2i_adapter_of_another_unet(components: Components, tmp_path: Path):
    T2IAdapter(3, [8, 32, 32, 32], 1, downscale_factor=8, adapter_type="full_adapter_xl").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="one for the middle"):
        load_control("t2i", tmp_path, image(), components)


def test_a_t2i_adapter_of_another_vae(components: Components, tmp_path: Path):
    """Right in width, wrong in size: nano's VAE halves twice, this one was made for less."""
    adapter = T2IAdapter(3, [16, 32, 32, 32], 1, downscale_factor=4, adapter_type="full_adapter_xl")
    adapter.save_pretrained(tmp_path / "sketch")
    with pytest.raises(UserError, match=r"gives features of 12x8 where the UNet's are 6x4.*downscale_factor"):
        load_control("t2i", tmp_path / "sketch", image(), components)


@pytest.mark.parametrize("name", ["ControlNetUnionModel", "ControlNetXSAdapter"])
def test_other_classes_are_named(components: Components, copy: Path, name: str, caplog):
    path = copy / "edges" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name, "num_control_type": 6}))
    with pytest.raises(UserError, match=f"This is a '{name}'.*A ControlNetModel is read here"):
        load_control("controlnet", copy / "edges", image(), components)
    assert "num_control_type" not in caplog.text


def test_a_control_in_a_single_file(components: Components, folders: Path):
    file = folders / "edges" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match=r"This control is a file.*from_single_file"):
        load_control("controlnet", file, image(), components)


@pytest.mark.parametrize(("kind", "folder"), [("controlnet", "sketch"), ("t2i", "edges")])
def test_the_folder_of_the_other_kind(components: Components, folders: Path, kind, folder: str):
    with pytest.raises(UserError):
        load_control(kind, folders / folder, image(), components)


def test_pickled_controls_are_never_opened(components: Components, copy: Path):
    stored = copy / "edges" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(stored), stored.with_suffix(".bin"))
    stored.unlink()
    with pytest.raises(UserError, match="pickles"):
        load_control("controlnet", copy / "edges", image(), components)


# IP-Adapter


def ip_weights(components: Components, plus: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    unet = components.unet
    context = unet.config.cross_attention_dim
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(name for name in names if name.endswith("attn2")):
        for which in ("to_k_ip", "to_v_ip"):
            shape = unet.get_submodule(name).to_k.weight.shape
            tensors[f"ip_adapter.{2 * index + 1}.{which}.weight"] = random(*shape)
    if not plus:
        return tensors | {
            "image_proj.proj.weight": random(4 * context, 32),
            "image_proj.proj.bias": random(4 * context),
            "image_proj.norm.weight": random(context) + 1,
            "image_proj.norm.bias": random(context),
        }
    inner = {"latents": (1, 5, 64), "proj_in.weight": (64, 32), "proj_in.bias": (64,)}
    inner |= {"proj_out.weight": (context, 64), "proj_out.bias": (context,)}
    inner |= {"norm_out.weight": (context,), "norm_out.bias": (context,)}
    for layer in range(4):  # diffusers builds four
        for norm in ("norm1", "norm2"):
            inner |= {f"layers.{layer}.0.{norm}.weight": (64,), f"layers.{layer}.0.{norm}.bias": (64,)}
        inner |= {f"layers.{layer}.0.to_q.weight": (64, 64), f"layers.{layer}.0.to_kv.weight": (128, 64)}
        inner |= {f"layers.{layer}.0.to_out.weight": (64, 64)}
        inner |= {f"layers.{layer}.1.0.weight": (64,), f"layers.{layer}.1.0.bias": (64,)}
        inner |= {f"layers.{layer}.1.1.weight": (256, 64), f"layers.{layer}.1.3.weight": (64, 256)}
    return tensors | {f"image_proj.{key}": random(*shape) for key, shape in inner.items()}


@pytest.fixture(params=[False, True], ids=["plain", "plus"])
def ip_file(request: pytest.FixtureRequest, components: Components, tmp_path: Path) -> Path:
    save_file(ip_weights(components, request.param), tmp_path / "ip.safetensors")
    return tmp_path / "ip.safetensors"


def seen(components: Components, prompt) -> ImageFeatures:
    assert components.vision is not None
    return encode_images(components.vision, clip_pixels(image(5), 32), prompt)


def test_ip_adapter_draws_what_diffusers_draws(random_nano: Path, components: Components, ip_file: Path):
    prompt = read_image_prompt(ip_file, components.unet)
    features = seen(components, prompt)
    pipe = pipeline(random_nano, StableDiffusionXLPipeline)
    pipe.load_ip_adapter(ip_file.parent, subfolder="", weight_name=ip_file.name, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.6)
    given = torch.stack([features.unconditional, features.conditional])
    expected = theirs(pipe, ip_adapter_image_embeds=[given])
    plain = draw(components)
    with ImagePrompts(components.unet) as prompts:
        prompts.attach(prompt, 0.6)
        ours = draw(components, image_embeds=prompts.embeds([features], 2, guided=True))
    close(ours, expected)
    assert (ours - plain).abs().max() > 0.05
    assert torch.equal(draw(components), plain)


def test_putting_an_ip_adapter_on_is_silent(components: Components, ip_file: Path, capfd: pytest.CaptureFixture[str]):
    """diffusers' own way moves the UNet and warns of it, to its own handler."""
    with ImagePrompts(components.unet) as prompts:
        prompts.attach(read_image_prompt(ip_file, components.unet), 1.0)
        added = [value for name, value in components.unet.named_parameters() if "_ip" in name or "encoder_hid" in name]
    assert added
    assert not any(value.requires_grad for value in added)
    assert capfd.readouterr().err == ""


def test_ip_adapters_leave_the_unet_as_it_was(components: Components, ip_file: Path):
    unet = components.unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    processors = dict(unet.attn_processors)
    prompt = read_image_prompt(ip_file, unet)
    with ImagePrompts(unet) as prompts:
        prompts.attach(prompt, 1.0)
        prompts.attach(prompt, 0.5)
        assert [scale for _, scale in prompts.attached] == [1.0, 0.5]
        assert unet.state_dict().keys() != before.keys()
        features = seen(components, prompt)
        draw(components, image_embeds=prompts.embeds([features, features], 2, guided=True))
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert unet.encoder_hid_proj is None
    assert unet.config.encoder_hid_dim_type is None


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if name not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("ip_adapter.3.to_v_ip"), r"1 keys are missing or unknown, the first is ip_adapter\.3\.to_v_ip"),
        (without("image_proj.norm.bias"), "This kind of IP-Adapter is not known"),
        (lambda t: t | {"extra": torch.zeros(1)}, "extra is no key of an IP-Adapter"),
        (lambda t: t | {"ip_adapter.1.to_k_lora.down.weight": torch.zeros(1)}, "1 keys are missing or unknown"),
        (
            lambda t: t | {"ip_adapter.1.to_k_ip.weight": torch.zeros(32, 7)},
            r"is \[32, 7\], this UNet needs \[32, 64\]",
        ),
        (lambda t: t | {"image_proj.proj.bias": torch.zeros(7)}, "projection of this IP-Adapter is not whole"),
        (lambda t: t | {"image_proj.norm.bias": torch.full((64,), torch.nan)}, "holds NaN"),
    ],
)
def test_ip_adapters_that_do_not_fit(components: Components, tmp_path: Path, change, message: str):
    save_file(change(ip_weights(components)), tmp_path / "ip.safetensors")
    with pytest.raises(UserError, match=message):
        read_image_prompt(tmp_path / "ip.safetensors", components.unet)


def test_another_vision_encoder(components: Components, tmp_path: Path):
    wide = ip_weights(components) | {"image_proj.proj.weight": torch.zeros(256, 48)}
    save_file(wide, tmp_path / "ip.safetensors")
    prompt = read_image_prompt(tmp_path / "ip.safetensors", components.unet)
    with pytest.raises(UserError, match="ip reads 48 numbers, this vision encoder gives 32"):
        seen(components, prompt)


@pytest.mark.parametrize("shape", [(32, 48), (90, 33), (32, 32), (7, 7)])
def test_clip_reads_squares(shape: tuple[int, int]):
    pixels = clip_pixels(torch.full((2, 3, *shape), 0.5), 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.zeros_like(pixels))
