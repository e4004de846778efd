"""`--safety` and `--sign`: what becomes of an image before it leaves the worker, and what is said of it."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from terminus import Terminus
from terminus.errors import UserError
from terminus.sampling.provenance import examine_provenance
from terminus.serving.safety_filter import SafetyFilter
from terminus.serving.safety_rules import SafetyRules
from tests.sampling.test_provenance import Authority
from tests.serving.conftest import Server

MODEL, PROMPT = "random-nano", "a dog"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


class Setup(NamedTuple):
    """A server that signs, and hides one of the images of two seeds."""

    server: Server
    shown: int
    hidden: int
    threshold: float
    anchors: bytes


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, of fixed random weights."""
    folder = tmp_path_factory.mktemp("judges") / "judge"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTForImageClassification(config)
        network.classifier.weight.data *= 20
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, random_nano: Path, classifier: Path) -> Iterator[Setup]:
    images = Terminus.load(random_nano, device="cpu").text2img(PROMPT, seed=[1, 2], steps=2)
    judge = SafetyFilter(SafetyRules(classifier, (("nsfw", 1e-9),)), torch.device("cpu"))
    scores = [why.score for one in images if (why := judge.look(one))]
    threshold = sum(scores) / 2  # between the two, whichever is which
    assert abs(scores[0] - scores[1]) > 1e-4
    authority = Authority.make(tmp_path_factory.mktemp("authority") / "a", "An Authority")
    options = ("--safety", f"{classifier}#nsfw={threshold!r}", "--sign", ",".join(map(str, authority.files())))
    server = Server(tmp_path_factory.mktemp("judged") / "images", *options, models=(str(random_nano),)).ready()
    shown, hidden = (1, 2) if scores[0] < scores[1] else (2, 1)
    yield Setup(server, shown, hidden, threshold, authority.anchors.read_bytes())
    assert server.stop() == 0


def draw(setup: Setup, seed: int, **fields: object) -> dict[str, Any]:
    return setup.server.draw(model=MODEL, prompt=PROMPT, seed=seed, steps=2, **fields)


def test_the_server_says_what_it_hides(setup: Setup):
    safety = setup.server.client.get("/api/v1/options").json()["safety"]
    assert safety == {"classifier": "judge", "thresholds": {"nsfw": setup.threshold}}


def test_an_image_that_passes_is_signed(setup: Setup, random_nano: Path):
    job = draw(setup, setup.shown)
    data = setup.server.png(job["images"][0]["id"])
    credentials = examine_provenance(data, setup.anchors)
    assert (credentials.state, credentials.actions, credentials.parents) == ("Trusted", ("c2pa.created",), 0)
    own = Terminus.load(random_nano, device="cpu").text2img(PROMPT, seed=setup.shown, steps=2)[0]
    assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == own.tobytes()
    assert job["warnings"] == []

    edited = draw(setup, setup.shown, task="image", image=job["images"][0]["id"], strength=0.3)
    if not edited["warnings"]:
        credentials = examine_provenance(setup.server.png(edited["images"][0]["id"]), setup.anchors)
        assert (credentials.state, credentials.parents) == ("Trusted", 1), "it names what it was drawn from"


def test_what_is_hidden_is_said_openly(setup: Setup):
    job = draw(setup, setup.hidden)
    assert job["state"] == "finished"
    (image,) = job["images"]
    said = image["metadata"]["hidden"]
    assert (said["label"], said["threshold"]) == ("nsfw", setup.threshold)
    assert said["score"] >= setup.threshold
    (warning,) = job["warnings"]
    assert f"nsfw {said['score']:.2f}" in warning
    assert image["parameters"] == warning
    data = setup.server.png(image["id"])
    assert warning.encode() in data, "the file says it too"
    with Image.open(io.BytesIO(data)) as plain:
        assert plain.size == (32, 32)
        colours = plain.convert("RGB").getcolors(32 * 32) or []
        assert all(red == green and 3 <= blue - red <= 6 for _, (red, green, blue) in colours), "grey letters on grey"
        assert max(count for count, _ in colours) > 32 * 32 / 2, "and most of it is the ground"
    assert setup.server.client.post(f"/api/v1/images/{image['id']}/again").status_code == 422
    assert "terminus_hidden_total" in setup.server.client.get("/metrics").text


def test_there_are_no_previews_of_what_may_be_hidden(setup: Setup):
    job = setup.server.submit(model=MODEL, prompt=PROMPT, seed=setup.hidden, steps=40)
    with setup.server.client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream:
        lines = list(stream.iter_lines())
    assert lines.count("event: step") >= 1
    assert not [line for line in lines if "previews" in line]


def test_openai_says_it_and_signs_other_formats(setup: Setup):
    def generate(seed: int) -> httpx2.Response:
        extra = {"seed": seed, "steps": 2, "output_format": "jpeg"}
        return setup.server.post("/v1/images/generations", {"prompt": PROMPT, "model": MODEL, **extra})

    data = base64.b64decode(generate(setup.shown).json()["data"][0]["b64_json"])
    assert examine_provenance(data, setup.anchors).state == "Trusted"
    assert "safety filter" in generate(setup.hidden).json()["warnings"][0]


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("nothing", "", "no image classifier"),
        ("", "#nswf", "no label 'nswf'.*Its labels are normal, nsfw"),
        ("", "#nsfw=2", "above 0 and at most 1"),
        ("", "#nsfw=high", "cannot be read"),
    ],
)
def test_rules_that_are_none(classifier: Path, name: str, chosen: str, message: str):
    with pytest.raises(UserError, match=message):
        SafetyRules.parse(f"{classifier / name}{chosen}")


def test_usual_labels_are_hidden_from_one_half_on(classifier: Path):
    assert SafetyRules.parse(str(classifier)).thresholds == (("nsfw", 0.5),)


def test_weights_that_are_missing_judge_nothing(classifier: Path, tmp_path: Path):
    shutil.copytree(classifier, tmp_path / "judge")
    tensors = load_file(tmp_path / "judge" / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, tmp_path / "judge" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights of the classifier are missing, the first is classifier\.weight"):
        SafetyFilter(SafetyRules.parse(str(tmp_path / "judge")), torch.device("cpu"))
