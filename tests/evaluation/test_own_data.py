"""A run is judged on the captions and images that its own training held out, and beside its own parent."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from terminus.card.command import card
from terminus.cli import main
from terminus.data.store import Store
from terminus.errors import UserError
from terminus.evaluation.captions import from_file
from terminus.evaluation.command import Own, evaluate
from terminus.evaluation.held_out import from_store
from terminus.evaluation.settings import FULL
from terminus.evaluation.trained import TrainedOn
from terminus.judged import find_judged, trained_by

SMALL = replace(FULL.counted(4), color_images=1, light_images=2, sampling=replace(FULL.sampling, steps=2))
QUIET = Console(quiet=True)


def measured(folder: Path, **own: object) -> dict:
    """`terminus evaluate` of a run, with few images."""
    found = find_judged(str(folder / "run"))
    data = Own(trained_by(found), **own)  # pyright: ignore[reportArgumentType]
    path = evaluate(found.model, folder / "run" / "evaluation", SMALL, QUIET, data)
    return json.loads(path.read_text(encoding="utf-8"))


def recipe_of(folder: Path) -> TrainedOn:
    """What the run's own recipe says."""
    trained = trained_by(find_judged(str(folder / "run")))
    assert trained is not None
    assert trained.parent == str(folder / "parent")
    return trained


def held_out(folder: Path) -> dict[str, np.ndarray]:
    """Caption to training pixels of the held-out rows, by way of the files."""
    view = Store(str(folder / "store")).latents.required()
    rows = view.scan(["captions", "source_id"], "split = 'validation'").to_pylist()
    found = {}
    for row in rows:
        with Image.open(folder / "images" / row["source_id"]) as image:
            found[row["captions"][0]] = np.asarray(image.resize((38, 32), Image.Resampling.LANCZOS))[:, 3:35]
    return found


def test_held_out_captions_come_with_the_images_that_training_would_have_seen(stripes: Path):
    trained = recipe_of(stripes)
    captions, known = from_store(trained, 100, seed=0), held_out(stripes)
    assert 4 <= len(known) < 24
    assert {item.text for item in captions.items} == set(known)
    assert (captions.available, captions.gone, captions.version) == (len(known), 0, trained.version)
    for item, image in zip(captions.items, captions.images, strict=True):
        assert image.shape == (32, 32, 3)
        assert np.abs(image.astype(int) - known[item.text]).mean() < 1.5, item.text
    assert captions.items[0].prompt == captions.items[0].text.replace("(", "\\(").replace(")", "\\)")
    assert [item.seed for item in captions.items] == list(range(len(known)))


def test_the_choice_depends_on_the_seed_alone(stripes: Path):
    trained = recipe_of(stripes)
    few, again, other = (
        [item.text for item in from_store(trained, 4, seed).items] for seed in (0, 0, 1)
    )  # fmt: skip
    assert few == again
    assert few != other
    assert few == [item.text for item in from_store(trained, 100, 0).items][:4]


def test_a_run_is_compared_with_its_own_images_and_its_parent(stripes: Path):
    metrics = measured(stripes)
    assert metrics["captions"] == {
        "kind": "held-out", "images": 4, "available": len(held_out(stripes)), "gone": 0, "source": "store",
        "version": metrics["captions"]["version"],
    }  # fmt: skip
    light, real = metrics["luminance"], held_out(stripes)
    assert light["against"] == "the run's held-out images"
    chosen = [sample["prompt"] for sample in metrics["samples"]]
    assert set(chosen) <= set(real)
    luma = np.mean([real[text] @ np.array([0.299, 0.587, 0.114]) / 255 for text in chosen])
    assert light["ztsnr"]["real_mean_luma"] == pytest.approx(luma, abs=0.005)
    assert light["ztsnr"]["images"] == light["before"]["images"] == 4
    assert metrics["before"]["name"] == "parent"
    assert metrics["no_before"] is None
    sets = metrics["contrast"]
    black = [sets[name]["backgrounds"]["black"]["border_luminance"]["mean"] for name in ("before", "ztsnr")]
    assert black[0] != black[1]
    assert light["before"]["wasserstein"] != light["ztsnr"]["wasserstein"]
    assert "held-out images" in metrics["alignment"]["definition"]
    assert metrics["alignment"]["before"]["captions"] == 4


def test_the_parents_numbers_are_those_of_the_parent_itself(stripes: Path):
    metrics = measured(stripes)
    trained = recipe_of(stripes)
    path = evaluate(str(stripes / "parent"), stripes / "alone", SMALL, QUIET, Own(trained))
    alone = json.loads(path.read_text(encoding="utf-8"))
    assert alone["luminance"]["ztsnr"] == metrics["luminance"]["before"]
    assert alone["contrast"]["ztsnr"] == metrics["contrast"]["before"]
    assert alone["no_before"] == "this is the model that the recipe begins from"


def test_pages_and_sheets_show_captions_and_colours(stripes: Path):
    metrics = measured(stripes)
    folder = stripes / "run" / "evaluation"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for sample in metrics["samples"]:
        assert f"<figcaption>{sample['prompt']}</figcaption>" in page
        assert {f"before: {sample['prompt']}", f"real image: {sample['prompt']}"} <= set(
            re.findall('alt="(.*?)"', page)
        )
    assert re.search(r'rgb\(0, 128, 128\)"></i><b>teal</b> a 3d render of ', page)
    assert "Before: parent, the model that training began from" in page
    assert str(stripes) not in page
    assert (folder / "probe.png").is_file()
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width == 4 * (128 + 6) + 6, "four captions, before and after"
    assert len(list((folder / "samples").iterdir())) == len(metrics["samples"]) == 4


def test_the_card_is_about_the_runs_data(stripes: Path):
    facts = {"begun_from": "folder", "finished": "2026-11-30T10:00:00+00:00"}
    (stripes / "run" / "facts.json").write_text(json.dumps(facts))
    metrics = measured(stripes)
    text = card(stripes / "run").read_text(encoding="utf-8")
    card(stripes / "run", check=True)
    distance = metrics["luminance"]
    assert "luminance histogram distance to the run's held-out images" in text
    assert f"| {distance['before']['wasserstein']:.4f} (n 4, CI" in text
    assert f"| {distance['ztsnr']['wasserstein']:.4f} (n 4, CI" in text
    matter = text.split("\n---\n")[0]
    assert "held-out captions and images of the run's own data" in matter
    prompts = re.findall(r"- text: (.*)", matter)
    assert prompts
    assert all(prompt.startswith("stripe (number") for prompt in prompts)
    assert "evaluation/samples.png" in text
    assert "red apple" not in text


def test_without_an_evaluation_of_its_data_the_card_shows_no_other_subjects(stripes: Path):
    (stripes / "run" / "facts.json").write_text("{}")
    run = stripes / "run"
    evaluate(str(run / "model"), run / "evaluation", SMALL, QUIET)
    text = card(run).read_text(encoding="utf-8")
    assert "samples" not in text.split("\n---\n")[0]
    assert "samples.png" not in text
    assert "red apple" not in text


def test_prompts_of_a_file_are_drawn_in_place_of_held_out_captions(stripes: Path, tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa stripe\n\n  a (wide:1.2) stripe  \r\na {red|blue} stripe\n", encoding="utf-8")
    shutil.rmtree(stripes / "store")
    metrics = measured(stripes, file=file)
    assert [sample["prompt"] for sample in metrics["samples"]] == [
        "a stripe", "a (wide:1.2) stripe", "a {red|blue} stripe",
    ]  # fmt: skip
    assert (metrics["captions"]["kind"], metrics["captions"]["source"]) == ("file", "prompts.txt")
    assert metrics["luminance"] is None
    assert metrics["alignment"] is None
    assert metrics["before"]["name"] == "parent"
    assert from_file(file, 2, seed=0).available == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no prompts"),
        (b"\n  \n\r\n", "has no prompts"),
        (b"fine\nna\xefve\n", r"prompts\.txt:2: This is not UTF-8"),
        (b"fine\nbad\x1b[2J\n", r"prompts\.txt:2: .*cannot be printed \(U\+001B\)"),
        (b"fine\na <lora:x:1> cat\n", r"prompts\.txt:2: "),
        (b"x\n" * (1 << 20), "has 2,097,152 bytes"),
        (None, "cannot be read"),
    ],
)
def test_a_prompts_file_that_says_nothing_is_an_error_of_the_user(tmp_path: Path, content: bytes | None, message: str):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        from_file(file, None, 0)
    with pytest.raises(UserError, match="not a file"):
        from_file(tmp_path, None, 0)


def test_a_missing_store_is_named(stripes: Path):
    shutil.rmtree(stripes / "store")
    with pytest.raises(UserError, match=r"store: The data that this model was trained on are not here.*--prompts FILE"):
        measured(stripes)


def test_rows_whose_image_is_gone_are_counted(stripes: Path):
    images = Store(str(stripes / "store")).images
    keys = images.required().scan(["key"], "split = 'validation'").column("key").to_pylist()
    images.delete("key", keys[1:])
    trained = recipe_of(stripes)
    captions = from_store(trained, 100, 0)
    assert (len(captions.items), captions.gone) == (1, len(keys) - 1)
    images.delete("key", keys)
    with pytest.raises(UserError, match="None of the held-out rows"):
        from_store(trained, 100, 0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("/parent", "/somebody-else", "recipe is of another model: the model records that it began from .*/parent"),
        ("resolution: 32", "resolution: 40", "the model draws 32 pixels, the recipe prepares 40"),
        ("resolution: 32", "crop: random\n  resolution: 32", "holds out no rows for this recipe"),
        ("kind: diffusion", "kind: vae", "trains a part of a model"),
    ],
)
def test_a_recipe_of_another_model_is_refused(stripes: Path, before: str, after: str, message: str):
    recipe = stripes / "stripes.yaml"
    recipe.write_text(recipe.read_text().replace(before, after))

    def judge() -> None:
        found = find_judged(str(stripes / "run"), str(recipe))
        evaluate(found.model, stripes / "out", SMALL, QUIET, Own(trained_by(found)))

    with pytest.raises(UserError, match=message):
        judge()
    assert not (stripes / "out").exists()


def test_a_model_knows_its_run_and_a_copy_does_not(stripes: Path, monkeypatch: pytest.MonkeyPatch):
    run = stripes / "run"
    for name in (run, run / "model", f"{run}/"):
        found = find_judged(str(name))
        assert (Path(found.model), found.run, found.recipe) == (run / "model", run, str(run / "recipe.yaml"))
    monkeypatch.chdir(run / "model")
    assert find_judged(".").run == run
    copy = shutil.copytree(run / "model", stripes / "copy")
    assert trained_by(find_judged(str(copy))) is None
    with_recipe = trained_by(find_judged(str(copy), str(stripes / "stripes.yaml")))
    assert with_recipe is not None
    assert with_recipe.version is None
    assert trained_by(find_judged("nano")) is None


def test_a_run_without_a_model_is_not_finished(stripes: Path):
    shutil.rmtree(stripes / "run" / "model")
    with pytest.raises(UserError, match="not finished"):
        find_judged(str(stripes / "run"))


def test_a_parent_that_is_gone_is_said_to_be(stripes: Path):
    shutil.rmtree(stripes / "parent")
    metrics = measured(stripes)
    assert metrics["before"] is None
    assert metrics["no_before"].startswith("the model that training began from is not here")
    assert metrics["contrast"]["before"] is None
    assert metrics["luminance"]["ztsnr"]["images"] == 4


def test_a_parent_on_a_leaky_schedule_draws_by_its_own(stripes: Path):
    """As where a run turns an epsilon model into one of velocity and zero terminal SNR."""
    config = stripes / "parent" / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}))
    metrics = measured(stripes)
    assert metrics["before"] is not None, metrics["no_before"]
    assert (metrics["before"]["prediction"], metrics["before"]["zero_terminal"]) == ("epsilon", False)
    assert metrics["luminance"]["before"]["images"] == 4


def test_the_command_line_judges_a_run_into_its_folder(stripes: Path, capsys: pytest.CaptureFixture[str]):
    run = stripes / "run"
    assert main(["evaluate", str(run), "--count", "2", "--steps", "3", "--seed", "5"]) == 0
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["sampling"]["steps"], metrics["sampling"]["seed"]) == (3, 5)
    assert metrics["captions"]["images"] == metrics["prompts"]["by_background"]["black"] == 2
    said = capsys.readouterr().err
    assert "luminance distance to the run's held-out images" in said
    assert "contrast probe, before training" in said
    assert main(["evaluate", "nano"]) == 2
    assert "Add --out" in capsys.readouterr().err
    empty = stripes / "empty.txt"
    empty.touch()
    assert main(["evaluate", str(run), "--prompts", str(empty)]) == 2
    assert f"{empty}: This file has no prompts." in capsys.readouterr().err
