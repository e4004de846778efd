"""Folders of images judged, models and folders compared, and the paragraphs for what cannot be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from terminus.cli import main
from terminus.errors import UserError
from terminus.evaluation.against import Against
from terminus.evaluation.compare import differences
from terminus.evaluation.compare_command import compare_models
from terminus.evaluation.folder_command import evaluate_folder
from terminus.evaluation.image_folder import open_folder
from terminus.evaluation.memorised import wilson_rate
from terminus.evaluation.rows import EvaluationRow
from terminus.evaluation.settings import QUICK

QUIET = Console(quiet=True)
FEW = replace(QUICK, extreme_images=2, color_images=1, light_images=1, sampling=replace(QUICK.sampling, steps=2))


def picture(number: int, side: int = 32) -> Image.Image:
    """A square of its own colour and place on grey."""
    rng = np.random.default_rng(number)
    pixels = np.full((side, side, 3), 120, np.uint8)
    top, left = rng.integers(0, side // 2, 2)
    pixels[top : top + side // 3, left : left + side // 3] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def folder_of(path: Path, numbers: range, side: int = 32) -> Path:
    path.mkdir(parents=True)
    for number in numbers:
        picture(number, side).save(path / f"{number:03}.png")
        (path / f"{number:03}.txt").write_text(f"a square, number {number}")
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, two of them copies of training images, beside twelve others."""
    root = tmp_path_factory.mktemp("folders")
    drawn, training = folder_of(root / "drawn", range(10)), folder_of(root / "training", range(100, 140))
    for number in (100, 101):
        picture(number).save(drawn / f"copy-{number}.png")
    (drawn / "broken.png").write_bytes(b"no image")
    against = Against(folder_of(root / "real", range(50, 62)), training)
    return evaluate_folder(drawn, root / "out", against, console=QUIET).parent


def test_a_folder_is_measured_against_a_reference_and_its_training_images(judged: Path):
    metrics = json.loads((judged / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["folder"], metrics["unread"]) == ("drawn", ["broken.png (not a JPEG, PNG or WebP image)"])
    found = metrics["image_set"]
    (distance,) = found["distributions"]
    assert (distance["drawn"], distance["reference"], distance["kind"]) == (12, 12, "nano")
    assert distance["frechet"] > 0
    assert 0 <= distance["manifold"]["coverage"] <= 1
    (agreement,) = found["agreement"]
    assert (agreement["images"], agreement["captions"]) == (10, 10), "the copies have no captions"
    memorised = found["memorised"]
    assert (memorised["copies"]["count"], memorised["copies"]["n"]) == (2, 12)
    assert memorised["too_near"]["count"] >= 2
    assert [round(apart, 4) for _, _, apart in memorised["nearest"][:2]] == [0, 0]
    assert {row for row, _, _ in memorised["nearest"][:2]} == {10, 11}


def test_its_page_stands_alone_and_sorts(judged: Path):
    page = (judged / "report.html").read_text(encoding="utf-8")
    assert {value[:5] for value in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data:"}
    assert 'table class="sortable"' in page
    assert "copies of a training image" in page
    for name in ("samples.png", "neighbours.png"):
        with Image.open(judged / name) as sheet:
            assert sheet.width > 200
    rows = [json.loads(line) for line in (judged / "images.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert {"mean_luma", "range"} <= rows[0].keys()


def test_wilsons_interval():
    # none of ten: the upper end is z² / (n + z²)
    assert wilson_rate(0, 10).ci95 == pytest.approx((0, 3.841459 / 13.841459), abs=1e-5)
    assert wilson_rate(5, 10).ci95 == pytest.approx((0.236593, 0.763407), abs=1e-5)


@pytest.mark.parametrize("order", ["", "--compare "])
def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str):
    (tmp_path / "empty").mkdir()
    full = folder_of(tmp_path / "full", range(2))
    names = [str(full), str(tmp_path / "empty")] if order else [str(tmp_path / "empty")]
    assert main(["evaluate", *order.split(), *names, "--out", str(tmp_path / "out")]) == 2
    assert "This folder has no images" in capsys.readouterr().err


def test_one_image_beside_a_reference(tmp_path: Path):
    one, real = folder_of(tmp_path / "one", range(1)), folder_of(tmp_path / "real", range(4))
    with pytest.raises(UserError, match="There is 1 image among the drawn images"):
        evaluate_folder(one, tmp_path / "out", Against(real), console=QUIET)
    with pytest.raises(UserError, match="This folder has 1 image, and 2 are needed"):
        evaluate_folder(real, tmp_path / "out", Against(one), console=QUIET)
    alone = json.loads(evaluate_folder(one, tmp_path / "out", console=QUIET).read_text(encoding="utf-8"))
    assert alone["image_set"]["distributions"] == []


def test_a_reference_of_other_sizes(tmp_path: Path):
    small, large = folder_of(tmp_path / "small", range(4)), folder_of(tmp_path / "large", range(4), side=48)
    with pytest.raises(UserError, match=r"The reference images are of 48×48, the drawn ones of 32×32.*--any-size"):
        evaluate_folder(small, tmp_path / "out", Against(large), console=QUIET)
    path = evaluate_folder(small, tmp_path / "out", Against(large, any_size=True), console=QUIET)
    assert json.loads(path.read_text(encoding="utf-8"))["image_set"]["distributions"]


def test_a_folder_of_damaged_images(tmp_path: Path):
    folder = folder_of(tmp_path / "some", range(0))
    (folder / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"no images; files that are no images: 1, the first a.png"):
        open_folder(folder)


def test_a_broken_line_of_prompts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\x07\n")
    arguments = ["evaluate", "nano", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "prompts.txt:2" in said
    assert len(said.strip().splitlines()) == 1


def test_several_without_compare_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "nano", "nano", "--out", str(tmp_path)]) == 2
    assert "2 models are named. Add --compare" in capsys.readouterr().err


def test_differences_are_of_pairs():
    def rows(shift: float) -> list[EvaluationRow]:
        hard = np.random.default_rng(0).normal(0, 10, 20)
        return [EvaluationRow("captions", f"{i}", i, {"x": float(value + shift)}) for i, value in enumerate(hard)]

    (found,) = differences(rows(0), [*rows(0.1), EvaluationRow("captions", "other", 0, {"x": 9.0})])
    assert (found.pairs, found.larger, found.clear) == (20, 1.0, True)
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.ci95 == pytest.approx((0.1, 0.1)), "what is hard for both is in no interval"
    (same,) = differences(rows(0), rows(0))
    assert (same.clear, same.difference.mean) == (False, 0.0)
    with pytest.raises(UserError, match="No image of it has a partner"):
        differences(rows(0), [EvaluationRow("captions", "0", 77, {"x": 1.0})])


def test_a_model_compared_with_itself_and_with_a_darker_folder(random_nano: Path, tmp_path: Path):
    path = compare_models([str(random_nano), str(random_nano)], tmp_path / "models", FEW, console=QUIET)
    found = json.loads(path.read_text(encoding="utf-8"))
    first, second = found["subjects"]
    assert first["differences"] == []
    assert {one["number"] for one in second["differences"]} >= {"luma error, asked black", "luma, asked dark", "range"}
    assert all(one["difference"]["mean"] == 0 and not one["clear"] for one in second["differences"])
    assert (tmp_path / "models" / "report.html").is_file()

    bright, dark = folder_of(tmp_path / "bright", range(8)), folder_of(tmp_path / "dark", range(8))
    for file in dark.glob("*.png"):
        Image.fromarray((np.asarray(Image.open(file)) * 0.5).astype(np.uint8)).save(file)
    path = compare_models([str(bright), str(dark)], tmp_path / "folders", FEW, console=QUIET)
    numbers = {one["number"]: one for one in json.loads(path.read_text(encoding="utf-8"))["subjects"][1]["differences"]}
    assert numbers["mean_luma"]["difference"]["mean"] == pytest.approx(-numbers["mean_luma"]["first"] / 2, abs=0.01)
    assert numbers["mean_luma"]["clear"]
    page = (tmp_path / "folders" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert str(tmp_path) not in page
