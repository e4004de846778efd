"""NudeNet itself, where it is installed, on the embedded drawings: some of them show what it looks for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from terminus.data import classify, emoji, nudity
from terminus.data.filters import Classifier
from terminus.data.prepare import prepare
from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.data.store import Store
from terminus.errors import UserError

INSTALLED = pytest.mark.skipif(not importlib.util.find_spec("nudenet"), reason="nudenet is not installed")
FEET = ("FEET_COVERED", "FEET_EXPOSED")


def asking(*labels: str) -> Classifier:
    return Classifier(score="unsafe", model="nudenet", labels=labels)


def drawing(name: str) -> Image.Image:
    """On white."""
    [found] = [one for one in emoji.drawings() if one.id == name]
    image = Image.open(BytesIO(emoji.rgba(found))).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@INSTALLED
def test_the_score_is_the_best_detection_of_these_classes_as_the_package_finds_them_in_the_file(tmp_path: Path):
    image = drawing("3d/footprints")
    image.save(tmp_path / "footprints.png")
    found = importlib.import_module("nudenet").NudeDetector().detect(str(tmp_path / "footprints.png"))
    assert len(found) > 1, "two feet"
    assert (
        classify.class_score(image, asking(*FEET)) == max(one["score"] for one in found if one["class"] in FEET) > 0.5
    )
    assert classify.class_score(image, asking("MALE_GENITALIA_EXPOSED", "BELLY_EXPOSED")) == 0
    assert classify.class_score(Image.new("RGB", (300, 200), "white"), asking(*nudity.CLASSES)) == 0


@INSTALLED
def test_the_classes_are_the_packages():
    assert sorted(nudity.CLASSES) == sorted(getattr(importlib.import_module("nudenet.nudenet"), "__labels"))
    classify.check_classifier(asking(*nudity.CLASSES))
    with pytest.raises(UserError, match=r"no class named feet\. Its classes are ANUS_COVERED, "):
        classify.check_classifier(asking("feet"))


@INSTALLED
def test_a_preparation_drops_what_it_finds(tmp_path: Path):
    for name in ("footprints", "red-apple"):
        drawing(f"3d/{name}").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    data = DataConfig.model_validate({
        "store": str(tmp_path / "store"),
        "sources": (FolderSource(kind="folder", name="mine", path=tmp_path),),
        "resolution": 64,
        "filters": {"max_unsafe": 0.5, "classifiers": (asking(*FEET),)},
    })  # fmt: skip
    report = prepare(data, None)
    assert (report.kept, report.dropped) == (1, {"unsafe content": 1})
    rejected = Store(data.store).rejected.required().scan(["source_id", "unsafe"]).to_pylist()
    assert [row["source_id"] for row in rejected] == ["footprints.png"]
    assert rejected[0]["unsafe"] == pytest.approx(classify.class_score(drawing("3d/footprints"), asking(*FEET)))


def test_without_the_package_one_paragraph_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    nudity.detector.cache_clear()
    with pytest.raises(UserError, match=r"NudeNet is not installed .*pip install 'terminus-xl\[nudenet\]'") as caught:
        classify.check_classifier(asking(*FEET))
    assert "\n" not in str(caught.value)
