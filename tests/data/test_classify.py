from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from terminus.data import classify
from terminus.data.filters import Classifier
from terminus.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real classifier in miniature, with random but fixed weights."""
    return classifier(tmp_path_factory.mktemp("classifier"))


def classifier(folder: Path) -> Path:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    names = {0: "clean", 1: "marked", 2: "stamped"}
    config = ConvNextV2Config(
        hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], image_size=32, id2label=names,
        label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    network = ConvNextV2ForImageClassification(config)
    network.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def asking(model: Path | str, *labels: str) -> Classifier:
    return Classifier(score="watermark", model=str(model), labels=labels)


def test_the_score_is_the_share_of_the_labels(model: Path):
    image = Image.new("RGB", (90, 60), (200, 100, 50))
    names = ("clean", "marked", "stamped")
    scores = [classify.class_score(image, asking(model, name)) for name in names]
    assert sum(scores) == pytest.approx(1.0)
    assert all(0 < score < 1 for score in scores)
    assert classify.class_score(image, asking(model, "marked", "stamped")) == pytest.approx(scores[1] + scores[2])


def test_a_wrong_label_or_model_is_one_paragraph(model: Path, tmp_path: Path):
    classify.check_classifier(asking(model, "marked"))
    with pytest.raises(UserError, match=r"no class named watermark\. Its classes are clean, marked, stamped"):
        classify.check_classifier(asking(model, "watermark"))
    with pytest.raises(UserError, match="no image classifier can be loaded"):
        classify.check_classifier(asking(tmp_path / "missing", "marked"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image classifier can be loaded"):
        classify.check_classifier(asking(tmp_path / "empty", "marked"))


def test_weights_that_are_no_safetensors_are_refused(model: Path, tmp_path: Path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no image classifier can be loaded"):
        classify.check_classifier(asking(tmp_path, "marked"))
