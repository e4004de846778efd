"""The experiment on zero terminal SNR: arms differ in the objective alone, and numbers are what they are called."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.experiments import measure
from benchmarks.experiments.__main__ import KINDS, arms_sheet, sheet
from benchmarks.experiments.arms import CONVERSIONS, FROM_RANDOM, LEAKS, RECIPES, all_arms
from benchmarks.experiments.leak import LATENTS, leak_figure, unknown
from benchmarks.experiments.report import bands, figure, interval, table
from terminus.config.load import load
from terminus.diffusion.schedule import NoiseSchedule
from terminus.evaluation.distribution.extractors import load_extractor
from terminus.model.weights import resolve
from terminus.training.recipe import Recipe


@pytest.mark.parametrize("name", FROM_RANDOM)
def test_an_arm_differs_in_its_objective_alone(name: str):
    recipes = [load(str(RECIPES / f"{one}.yaml"), Recipe).value for one in (name, "velocity")]
    ours, other = ({key: value for key, value in one.model_dump().items() if key != "objective"} for one in recipes)
    assert ours == other
    assert (name == "velocity") == (recipes[0].objective == recipes[1].objective)


def test_the_leak_is_that_of_sdxl_at_its_size():
    """N SNR_T, the signal-to-noise ratio of the mean of N latents at the last timestep."""
    sdxl = NoiseSchedule.scaled_linear(0.00085, 0.012, 1000)
    ours = NoiseSchedule.scaled_linear(0.00085, load(str(RECIPES / "velocity.yaml"), Recipe).value.model.beta_end, 1000)
    assert 128 * 128 * float(sdxl.snr[-1]) == pytest.approx(76.7, abs=0.1)
    assert 16 * 16 * float(ours.snr[-1]) == pytest.approx(76.7, rel=0.01)


def test_every_arm_has_every_seed_and_conversions_follow_the_model_that_they_convert(tmp_path: Path):
    arms = all_arms(tmp_path, 3)
    assert len({arm.folder for arm in arms}) == len(arms) == 3 * (len(FROM_RANDOM) + len(CONVERSIONS) + len(LEAKS))
    for number, arm in enumerate(arms):
        if arm.name.startswith("converted"):
            assert tmp_path / f"velocity-{arm.seed}" in [before.folder for before in arms[:number]]
            recipe = load(str(arm.recipe), Recipe, list(arm.overrides)).value
            assert recipe.training.images == int(arm.name.split("-")[1])
            assert recipe.model.start == str(tmp_path / f"velocity-{arm.seed}" / "model")


def runs() -> list[dict[str, object]]:
    numbers = measure.Measured(0.1, 0.8, 0.2, 0.7, 0.1, 1.5)
    return [
        {"arm": "velocity", "seed": seed, "measured": asdict(numbers) | {"white": white}, "validation": {"all": 1.0}}
        for seed, white in enumerate((0.8, 0.9, 1.0))
    ]


def test_intervals_are_those_of_students_t():
    """Mean 0.9, standard deviation 0.1, 4.303 / sqrt(3) of it to each side."""
    assert interval([0.8, 0.9, 1.0]) == "0.900 ± 0.248"
    assert interval([0.8]) == "0.800"
    assert "| velocity | 3 | 0.100 ± 0.000 | 0.900 ± 0.248 |" in table(runs())


def test_the_figure_has_a_dot_for_each_seed():
    dots = ElementTree.fromstring(figure(runs())).findall(".//{*}circle")
    assert len(dots) == 6
    assert float(dots[1].attrib["cx"]) - float(dots[0].attrib["cx"]) == pytest.approx(560 * 0.7, abs=0.2)


def test_leaks_are_named_by_what_they_are():
    for name, end in LEAKS.items():
        leak = LATENTS * float(NoiseSchedule.scaled_linear(0.00085, end, 1000).snr[-1])
        assert float(name.removeprefix("leak-")) == pytest.approx(leak, rel=0.02)


def test_the_curve_of_the_leak():
    """At N SNR_T s² = 1 half of the variance is left; a dot stands at the contrast of its run."""
    assert unknown(1 / 0.32) == 0.5
    drawn = ElementTree.fromstring(leak_figure(runs(), {"velocity": 10.0}))
    heights = [float(dot.attrib["cy"]) for dot in drawn.findall(".//{*}circle")]
    assert heights == [pytest.approx(44 + 300 * (1 - contrast), abs=0.1) for contrast in (0.7, 0.8, 0.9)]


def test_the_sheet_shows_the_same_kinds_of_every_arm(tmp_path: Path):
    """Rows of an arm's own sheet are found by their kind: black first, white below it."""
    for name, value in (("one", 10), ("two", 200)):
        reds = {kind: [value + number, 0, 0] for number, kind in enumerate(KINDS)}
        drawn = {kind: np.full((6, 8, 8, 3), red, np.uint8) for kind, red in reds.items()}
        (tmp_path / f"{name}-0").mkdir()
        sheet(drawn).save(tmp_path / f"{name}-0" / "drawn.png")
    pixels = {tuple(map(int, pixel)) for pixel in np.asarray(arms_sheet(tmp_path, ["one", "two"])).reshape(-1, 3)}
    assert {pixel[0] for pixel in pixels if pixel[1:] == (0, 0)} == {10, 11, 200, 201}


def test_the_error_by_band_is_a_mean_over_seeds():
    made = [{"arm": "velocity", "validation": {"all": 9.0, "000-099": value}} for value in (1.0, 2.0)]
    assert bands(made).splitlines() == ["| arm | 000-099 |", "|---|---|", "| velocity | 1.500 |"]


def test_a_model_is_measured(monkeypatch: pytest.MonkeyPatch):
    """The shipped nano obeys black and white when they are named."""
    monkeypatch.setattr(measure, "SUBJECTS", 4)
    monkeypatch.setattr(measure, "VARIED", 4)
    found, drawn = measure.measure(resolve("nano"), load_extractor("nano"))
    assert found.black < 0.2
    assert found.white > 0.8
    assert found.cmmd > 0
    assert {kind: images.shape for kind, images in drawn.items()} == dict.fromkeys(drawn, (4, 64, 64, 3))
    assert all(images.dtype == np.uint8 for images in drawn.values())


def test_a_wrong_override_ends_with_what_the_command_said(tmp_path: Path):
    """One paragraph and its exit code, without a traceback of ours behind it."""
    command = [sys.executable, "-m", "benchmarks.experiments", "--out", str(tmp_path), "--results", str(tmp_path)]
    command += ["--override", "trainin.images=3"]
    done = subprocess.run(command, cwd=RECIPES.parents[1], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr
    assert "Traceback" not in done.stderr
