"""The benchmark measures what it says: the same work on both sides, parts that add up, an answer to wrong input."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from terminus.bench.contenders import Work, components_of, diffusers, ours
from terminus.bench.measure import NetworkProbes, NetworkSeconds, Spread, parts_of, peak_bytes, timed
from terminus.bench.sample import bench_sample, unet_flops
from terminus.bench.vae import bench_vae
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import load_components
from terminus.model.execution import Running
from terminus.model.tiling import Tiling

CPU = torch.device("cpu")
# diffusers' schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_both_contenders_do_the_same_work(random_nano: Path):
    work = Work(Size(32, 48), steps=3, batch=2)
    components = load_components(random_nano)
    theirs = diffusers(str(random_nano), components, work, CPU, Running())
    both = [ours(str(random_nano), components, work, CPU, Running()), theirs]
    assert {id(m) for m in both[0].networks.modules()}.isdisjoint(id(m) for m in both[1].networks.modules())
    for one in both:
        shapes: list[tuple[int, ...]] = []

        def watch(_: nn.Module, inputs: tuple[torch.Tensor, ...], seen: list[tuple[int, ...]] = shapes) -> None:
            seen.append(tuple(inputs[0].shape))

        handle = one.networks.unet.register_forward_pre_hook(watch)
        with parts_of(one.networks, CPU) as parts:
            images = one.run()
        handle.remove()
        assert shapes == [(4, 4, 8, 12)] * 3
        assert parts.unet_calls == 3
        assert min(parts.seconds.values()) > 0
        flat = images[0] if isinstance(images[0], list) else images
        assert [image.size for image in flat] == [(48, 32)] * 2


def test_the_table_is_printed_and_written(random_nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "result.json"
    results = bench_sample(str(random_nano), out, "diffusers", Size(32, 32), steps=2, runs=2, device="cpu")
    assert [one.name for one in results] == ["terminus", "diffusers"]
    for one in results:
        assert one.run.low <= one.run.median <= one.run.high
        assert one.seconds_per_image == pytest.approx(1 / one.images_per_second)
        assert one.unet_calls == 2
        assert one.tflops > 0
    written = json.loads(out.read_text())
    assert written["work"]["steps"] == 2
    assert written["results"][1]["run"]["runs"] == 2
    assert "ratio" in capsys.readouterr().out.splitlines()[1]


def test_alone_and_in_bf16(random_nano: Path, capsys: pytest.CaptureFixture[str]):
    (result,) = bench_sample(str(random_nano), steps=1, runs=1, device="cpu", running=Running(precision="bf16"))
    assert result.name == "terminus"
    assert "bf16" in capsys.readouterr().out


def test_random_weights_need_no_files(capsys: pytest.CaptureFixture[str]):
    (result,) = bench_sample("random:nano", steps=1, runs=1, device="cpu")
    assert result.unet_calls == 1
    with pytest.raises(UserError, match="no architecture"):
        components_of("random:flux", CPU)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"runs": 0}, {"against": "comfyui"}])
def test_wrong_input_is_answered(random_nano: Path, wrong: dict[str, object]):
    with pytest.raises(UserError):
        bench_sample(str(random_nano), device="cpu", **wrong)


def test_flops_are_of_the_whole_batch(random_nano: Path):
    components = load_components(random_nano)
    one, three = (unet_flops(components, Work(Size(32, 32), batch=batch)) for batch in (1, 3))
    assert three == 3 * one > 0


# --- the measures themselves -----------------------------------------------------------------------------------------


class _Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


class _VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = _Slow(0.01), _Slow(0.02)


def test_parts_are_told_apart():
    networks = NetworkProbes([_Slow(0.01), _Slow(0.02)], _Slow(0.05), _VAE())
    x = torch.zeros(1)
    with parts_of(networks, CPU) as parts:
        for text_encoder in networks.text_encoders:
            text_encoder(x)
        networks.unet(networks.unet(x))
        networks.vae.decoder(networks.vae.post_quant_conv(x))
    assert parts.unet_calls == 2
    assert parts.seconds["text"] == pytest.approx(0.03, abs=0.02)
    assert parts.seconds["unet"] == pytest.approx(0.10, abs=0.04)
    assert parts.seconds["decode"] == pytest.approx(0.03, abs=0.02)
    networks.unet(x)
    assert parts.unet_calls == 2  # the hooks are gone
    assert NetworkSeconds().seconds["unet"] == 0.0


def test_peak_memory_counts_the_work_and_the_weights():
    networks = NetworkProbes([], nn.Linear(2048, 2048, bias=False), _VAE())
    weights = 4 * 2048 * 2048

    def work() -> None:
        torch.ones(64, 1024, 1024).sum()  # 256 MiB

    peak = peak_bytes(work, networks, CPU)
    if peak is None:
        pytest.skip("this system does not tell")
    assert peak == pytest.approx(weights + 2**28, rel=0.25)
    assert timed(lambda: time.sleep(0.02), CPU) >= 0.02


def test_the_spread_of_runs():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)


def test_tiles_against_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiles, whole = bench_vae("nano", tmp_path / "r.json", Size(256, 192), Tiling(side=128, overlap=32), "cpu")
    assert tiles.seconds
    assert whole.seconds
    assert tiles.levels_from_whole is not None
    assert "tiles of 128" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 2
