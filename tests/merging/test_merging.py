"""Whole models and adapters out of others: identities, lineage, what diffusers loads, and every refusal."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from terminus.errors import UserError
from terminus.inspection.command import inspect
from terminus.merging.adapters import WrittenAdapter
from terminus.merging.arguments import AdapterSize, MergePlan, parse_models
from terminus.merging.extraction import extract_difference
from terminus.merging.loras import merge_adapters, merge_into_model
from terminus.merging.models import blocks_of, merge_models
from terminus.model.adapters import Adapters
from terminus.model.components import load_components
from terminus.model.header import read_header
from terminus.model.record import Schedule, load_record

UNET = "unet/diffusion_pytorch_model.safetensors"
FILES = (UNET, "text_encoder/model.safetensors", "text_encoder_2/model.safetensors")
VAE = "vae/diffusion_pytorch_model.safetensors"
CHANGED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def varied(source: Path, folder: Path, seed: int, amount: float = 0.02) -> Path:
    """A copy in float32 whose networks, VAE included, are other by noise."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    for name in (*FILES, VAE):
        tensors = {key: value.float() for key, value in load_file(folder / name).items()}
        moved = {key: value + amount * torch.randn(value.shape, generator=generator) for key, value in tensors.items()}
        save_file(moved, folder / name, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("merged")
    a, b, c = (varied(random_nano, folder / name, seed) for seed, name in enumerate("abc"))
    return a, b, c


def plan(*models: object, **settings: Any) -> MergePlan:
    method = settings.pop("method", "weighted-sum")
    return MergePlan(parse_models([str(model) for model in models]), method, **settings)


def edited(model: Path, folder: Path, file: str, **values: object) -> Path:
    """A copy with other values in one JSON file."""
    shutil.copytree(model, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_a_weighted_sum_is_that_and_the_vae_is_the_firsts(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, c = models
    merge_models(plan(a, f"{b}:0.3", f"{c}:0.2"), tmp_path / "sum")
    for name in FILES:
        first, second, third, merged = (load_file(folder / name) for folder in (a, b, c, tmp_path / "sum"))
        for key, value in first.items():
            expected = 0.5 * value.double() + 0.3 * second[key].double() + 0.2 * third[key].double()
            torch.testing.assert_close(merged[key], expected.float(), rtol=1e-6, atol=1e-8)
    assert same(load_file(a / VAE), load_file(tmp_path / "sum" / VAE))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_whole_difference_added_to_its_own_base_is_the_tuned_model_to_the_bit(
    models: tuple[Path, Path, Path], tmp_path: Path
):
    a, b, _ = models
    merge_models(plan(a, b, a, method="add-difference"), tmp_path / "b")
    for name in FILES:
        assert same(load_file(b / name), load_file(tmp_path / "b" / name)), name


def test_an_added_difference(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, c = models
    merge_models(plan(a, f"{b}:0.7", c, method="add-difference"), tmp_path / "new")
    first, second, third, merged = (load_file(folder / UNET) for folder in (*models, tmp_path / "new"))
    expected = {key: value + 0.7 * (second[key] - third[key]) for key, value in first.items()}
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def test_blocks_have_weights_of_their_own(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, _ = models
    blocks = {"down": 1.0, "down.1": 0.0, "mid": 0.25, "text_encoder": 0.0, "text_encoder_2": 1.0, "vae": 1.0}
    merge_models(plan(a, f"{b}:0.0", blocks=blocks), tmp_path / "new")
    first, second, merged = (load_file(folder / UNET) for folder in (a, b, tmp_path / "new"))
    for key, value in merged.items():
        weight = next((blocks[block] for block in blocks_of("unet", key) if block in blocks), 0.0)
        torch.testing.assert_close(value, first[key] + weight * (second[key] - first[key]), rtol=1e-5, atol=1e-6)
    assert blocks_of("unet", "down_blocks.1.x") == ("down.1", "down", "unet")
    assert same(load_file(a / FILES[1]), load_file(tmp_path / "new" / FILES[1]))
    assert same(load_file(b / FILES[2]), load_file(tmp_path / "new" / FILES[2]))
    assert same(load_file(b / VAE), load_file(tmp_path / "new" / VAE))


def test_ties_of_one_model_keeps_the_largest_fifth(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, _ = models
    merge_models(plan(a, b, method="ties"), tmp_path / "new")
    first, second, merged = (load_file(folder / UNET) for folder in (a, b, tmp_path / "new"))
    tau = torch.cat([(second[key] - value).flatten() for key, value in first.items()])
    found = torch.cat([(merged[key] - value).flatten() for key, value in first.items()])
    least = tau.abs().sort(descending=True).values[int(-(-0.2 * len(tau) // 1)) - 1]
    assert (found != 0).float().mean().item() == pytest.approx(0.2, abs=1e-4)
    torch.testing.assert_close(found, torch.where(tau.abs() >= least, tau, 0.0), rtol=1e-4, atol=1e-6)


def test_dare_is_repeatable_and_keeps_its_share(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, _ = models
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        merge_models(plan(a, b, method="dare", density=0.3, seed=seed), tmp_path / name)
    one, two, three = (load_file(tmp_path / name / UNET) for name in ("one", "two", "three"))
    first, second = load_file(a / UNET), load_file(b / UNET)
    moved = torch.cat([(one[key] != value).flatten() for key, value in first.items()])
    assert moved.float().mean().item() == pytest.approx(0.3, abs=0.02)
    key = CHANGED
    kept = one[key] != first[key]
    torch.testing.assert_close(one[key][kept], first[key][kept] + (second[key] - first[key])[kept] / 0.3)
    assert same(one, two)
    assert not same(one, three)


def test_a_merge_says_where_it_came_from(models: tuple[Path, Path, Path], tmp_path: Path, capsys):
    a, b, c = models
    merge_models(plan(a, f"{b}:0.3", blocks={"mid": 0.1}), tmp_path / "one")
    written = merge_models(plan(tmp_path / "one", f"{c}:0.25"), tmp_path / "two-vpred.safetensors")
    assert written.says == "v-zsnr"
    capsys.readouterr()
    inspect(str(written.target), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["prediction"], found["zero_terminal"], found["conflicts"]) == ("velocity", True, [])
    first, second = found["merges"]
    assert [model["name"] for model in first["models"]] == ["a", "b"]
    assert [model["weight"] for model in first["models"]] == [0.7, 0.3]
    assert first["blocks"] == {"mid": 0.1}
    inspect(str(tmp_path / "one"), as_json=True)
    assert second["models"][0]["sha256"] == json.loads(capsys.readouterr().out)["hashes"]["sha256"]
    header = read_header(written.target)
    assert header.metadata["modelspec.merged_from"] == "one, c"
    assert {"v_pred", "ztsnr"} <= header.tensors.keys()
    inspect(str(written.target))
    assert "weighted-sum: a × 0.7 (SHA-256" in capsys.readouterr().out
    record = load_record(tmp_path / "one")
    assert (record.images_seen, record.weighting, record.native_pixels) == (0, {}, 32)


def test_what_predicts_differently_is_refused_unless_the_result_is_named(
    models: tuple[Path, Path, Path], tmp_path: Path
):
    a, b, _ = models
    scheduler = "scheduler/scheduler_config.json"
    leaky = edited(b, tmp_path / "leaky", scheduler, rescale_betas_zero_snr=False)
    epsilon = edited(b, tmp_path / "eps", scheduler, rescale_betas_zero_snr=False, prediction_type="epsilon")
    for folder in (leaky, epsilon):  # the record repeats the schedule
        (folder / "terminus.json").unlink()
    for other, words in ((leaky, "a leaky schedule"), (epsilon, "epsilon on a leaky schedule")):
        with pytest.raises(UserError, match=rf"do not answer the same question.*{words}.*--as v-ztsnr"):
            merge_models(plan(a, other), tmp_path / "new")
    merge_models(plan(a, epsilon, decided="v-ztsnr"), tmp_path / "told")
    assert load_record(tmp_path / "told").schedule == load_record(a).schedule
    merge_models(plan(a, epsilon, decided="epsilon"), tmp_path / "other")
    assert load_record(tmp_path / "other").schedule == Schedule("epsilon", zero_terminal=False)
    for decided in ("flow", "v"):
        with pytest.raises(
            UserError, match=rf"None of these models is {decided}.*Say which: velocity on zero terminal"
        ):
            merge_models(plan(a, epsilon, decided=decided), tmp_path / "new")
    with pytest.raises(UserError, match="Merging changes no prediction"):
        merge_models(plan(a, b, decided="epsilon"), tmp_path / "new")
    with pytest.raises(UserError, match="do not answer the same question"):
        extract_difference(str(epsilon), str(a), tmp_path / "new", AdapterSize(rank=2))
    assert not any("new" in path.name for path in tmp_path.iterdir())


def test_different_architectures_are_refused_with_nothing_written(models: tuple[Path, Path, Path], tmp_path: Path):
    a, b, _ = models
    with pytest.raises(UserError, match=r"are of different architectures: .* Only weights of the same layers"):
        merge_models(plan(a, "nano"), tmp_path / "new")
    heads = edited(b, tmp_path / "heads", "unet/config.json", attention_head_dim=[2, 2, 2])
    with pytest.raises(UserError, match="attention_head_dim of the unet is"):
        merge_models(plan(a, heads), tmp_path / "new")
    latents = edited(b, tmp_path / "latents", "vae/config.json", scaling_factor=0.5)
    with pytest.raises(UserError, match="scaling_factor of the vae is"):
        merge_models(plan(a, latents), tmp_path / "new")
    with pytest.raises(UserError, match=r"no block down\.7.*Their blocks are"):
        merge_models(plan(a, b, blocks={"down.7": 1.0}), tmp_path / "new")
    with pytest.raises(UserError, match=r"does not fit float16: largest magnitude .* smaller weights"):
        merge_models(plan(a, f"{b}:1e9"), tmp_path / "new", precision="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "latents"]


def test_an_inpainting_model_keeps_its_further_channels(
    models: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    a, b, c = models
    wide = edited(a, tmp_path / "wide", "unet/config.json", in_channels=9)
    tensors = load_file(wide / UNET)
    more = torch.ones(16, 5, 3, 3)
    save_file(tensors | {"conv_in.weight": torch.cat([tensors["conv_in.weight"], more], 1)}, wide / UNET)
    with caplog.at_level(logging.WARNING, "terminus"):
        merge_models(plan(wide, b, c, method="add-difference"), tmp_path / "new")
    assert "wide reads 9 channels, the others 4" in caplog.text
    merged, second, third = (load_file(folder / UNET)["conv_in.weight"] for folder in (tmp_path / "new", b, c))
    assert torch.equal(merged[:, 4:], more)
    torch.testing.assert_close(merged[:, :4], tensors["conv_in.weight"] + second - third)
    with pytest.raises(UserError, match="it adds no inputs"):
        extract_difference(str(wide), str(b), tmp_path / "adapter", AdapterSize(rank=2))


def test_licences_that_differ_are_told(models: tuple[Path, Path, Path], tmp_path: Path, caplog):
    a, b, _ = models
    for name, model, licence in (("x", a, "mit"), ("y", b, "openrail++")):
        edited(model, tmp_path / name, "terminus.json", licence=licence)
    with caplog.at_level(logging.WARNING, "terminus"):
        merge_models(plan(tmp_path / "x", tmp_path / "y"), tmp_path / "new")
    assert "The licences differ (mit, openrail++)" in caplog.text
    assert load_record(tmp_path / "new").licence is None


# Adapters


@pytest.fixture(scope="module")
def adapted(models: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenAdapter]:
    """The whole difference of the first two models, and what is left of it at rank 3."""
    a, b, c = models
    folder = tmp_path_factory.mktemp("extracted")
    return {
        "full": extract_difference(str(b), str(a), folder / "full", AdapterSize(rank=10_000)),
        "three": extract_difference(str(b), str(a), folder / "three", AdapterSize(rank=3)),
        "other": extract_difference(str(c), str(a), folder / "other", AdapterSize(rank=3)),
    }


def kohya(written: WrittenAdapter) -> Path:
    return written.folder / f"{written.folder.name}.safetensors"


def test_the_whole_difference_makes_the_tuned_model(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path
):
    """Every weight, bias and norm but the embeddings' and the VAE's; and the images agree."""
    a, b, _ = models
    merge_into_model(str(a), [(kohya(adapted["full"]), 1.0)], tmp_path / "b", "fp32")
    for name in FILES:
        tuned, merged = load_file(b / name), load_file(tmp_path / "b" / name)
        for key, value in tuned.items():
            if "embedding." not in key or name == UNET:
                torch.testing.assert_close(merged[key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
    assert adapted["full"].lost < 1e-6
    # Embeddings and VAE of the tuned model, in which the rest is put back: the images are those of the tuned model.
    ours, theirs = load_components(tmp_path / "b"), load_components(b)
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    context = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1))
    added = {"text_embeds": torch.zeros(1, 32), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        outputs = [c.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0] for c in (ours, theirs)]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)


def test_diffusers_loads_an_extracted_adapter(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path
):
    """Its file has no place for biases and norms: compared with the weights that have one."""
    from diffusers import StableDiffusionXLPipeline

    a, b, _ = models
    pipeline = StableDiffusionXLPipeline.from_pretrained(a, local_files_only=True)
    pipeline.load_lora_weights(adapted["full"].folder, weight_name="pytorch_lora_weights.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused, tuned = pipeline.unet.state_dict(), load_file(b / UNET)
    matrices = [key for key, value in tuned.items() if value.ndim > 1]
    assert len(matrices) > 60
    for key in matrices:
        torch.testing.assert_close(fused[key], tuned[key], rtol=1e-4, atol=1e-5, msg=key)


def test_a_rank_or_an_error_decides_the_size(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path, caplog
):
    a, b, _ = models
    assert (adapted["three"].least, adapted["three"].most) == (3, 3)
    assert adapted["three"].lost > 0.1
    with caplog.at_level(logging.WARNING, "terminus"):
        loose = extract_difference(str(b), str(a), tmp_path / "loose", AdapterSize(error=0.5))
    assert 0.1 < loose.lost <= 0.5
    assert "embeddings.token_embedding" in caplog.text
    assert "the VAE" in caplog.text
    metadata = read_header(kohya(loose)).metadata
    assert metadata["ss_network_dim"] == "Dynamic"
    assert metadata["modelspec.merged_from"] == "b, a"
    assert json.loads(metadata["terminus.merge"])["settings"] == {"error": 0.5}


def test_merged_into_a_model_it_is_what_sampling_with_it_does(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path
):
    a = models[0]
    both = [(kohya(adapted["three"]), 0.5), (kohya(adapted["other"]), -0.25)]
    merge_into_model(str(a), both, tmp_path / "new", "fp32")
    components = load_components(a)
    adapters = Adapters(components)
    for path, weight in both:
        adapters.attach(path, weight)
    assert same(components.unet.state_dict(), load_components(tmp_path / "new").unet.state_dict())
    assert load_record(tmp_path / "new").merges[0].models[0].name == "a"


def test_merged_into_each_other_they_change_a_model_as_both_do(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path
):
    a = models[0]
    both = [(kohya(adapted["three"]), 0.5), (kohya(adapted["other"]), -0.25)]
    exact = merge_adapters(str(a), both, tmp_path / "exact", AdapterSize())
    again = merge_adapters(str(a), both, tmp_path / "again", AdapterSize(rank=6))
    small = merge_adapters(str(a), both, tmp_path / "small", AdapterSize(rank=2))
    assert (exact.most, again.most, small.most) == (6, 6, 2)
    assert again.lost < 1e-6 < 0.01 < small.lost
    merge_into_model(str(a), both, tmp_path / "model", "fp32")
    expected = load_file(tmp_path / "model" / UNET)
    for written in (exact, again):
        merge_into_model(str(a), [(kohya(written), 1.0)], tmp_path / f"with-{written.folder.name}", "fp32")
        found = load_file(tmp_path / f"with-{written.folder.name}" / UNET)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_adapters_are_refused_where_they_do_not_fit(
    models: tuple[Path, Path, Path], adapted: dict[str, WrittenAdapter], tmp_path: Path
):
    a = models[0]
    tensors = load_file(kohya(adapted["three"]))
    stem = next(key for key in tensors if "attn1_to_q.lora_up" in key).removesuffix(".lora_up.weight")
    of_one = {key: value for key, value in tensors.items() if key.startswith(f"{stem}.")}
    save_file(of_one | {f"{stem}.dora_scale": torch.ones(32, 1)}, tmp_path / "dora.safetensors")
    with pytest.raises(UserError, match=r"is changed by DoRA, which has no exact sum.*--rank 32"):
        merge_adapters(str(a), [(tmp_path / "dora.safetensors", 1.0)], tmp_path / "new", AdapterSize())
    merge_adapters(str(a), [(tmp_path / "dora.safetensors", 1.0)], tmp_path / "taken-apart", AdapterSize(rank=64))
    save_file(of_one, tmp_path / "eps.safetensors", {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(UserError, match=r"eps was trained on epsilon .*, a is velocity.*--as v-ztsnr"):
        merge_into_model(str(a), [(tmp_path / "eps.safetensors", 1.0)], tmp_path / "new")
    merge_into_model(str(a), [(tmp_path / "eps.safetensors", 1.0)], tmp_path / "told", decided="v-ztsnr")
    with pytest.raises(UserError, match="no difference that an adapter can hold"):
        extract_difference(str(a), str(a), tmp_path / "new", AdapterSize(rank=2))
    assert not (tmp_path / "new").exists()
