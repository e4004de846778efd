"""What is asked for, what the control does, and the three files of `terminus evaluate`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from rich.console import Console
from torch.nn.functional import normalize

from terminus import runtime
from terminus.data.emoji import BACKGROUNDS
from terminus.errors import UserError
from terminus.evaluation import draw
from terminus.evaluation.against import Against
from terminus.evaluation.alignment import AlignmentEncoders, measure_alignment
from terminus.evaluation.bias_file import BiasQuestions
from terminus.evaluation.command import evaluate
from terminus.evaluation.distribution.extractors import OWN
from terminus.evaluation.draw import leading, leaky, own
from terminus.evaluation.fingerprint import model_fingerprint
from terminus.evaluation.kept import Kept
from terminus.evaluation.light import light_prompts, measure_light
from terminus.evaluation.prompts import EvaluationPrompt, build_prompts, real_images
from terminus.evaluation.settings import FULL, QUICK
from terminus.model.components import load_components
from terminus.sampling.settings import Settings

SMALL = replace(
    QUICK, captions=2, extreme_images=4, color_images=1, light_images=2, sampling=replace(QUICK.sampling, steps=2)
)
QUIET = Console(quiet=True)
LEFT_OPEN = BiasQuestions(
    groups={"an animal": ("an animal",)},
    axes={"style": {"3d": "a 3d render of {}", "flat": "a flat drawing of {}"}},
)


def test_black_and_white_are_asked_of_the_same_subjects_with_the_same_seeds():
    prompts = build_prompts(64, FULL.extreme_images, FULL.color_images, seed=0)
    black, white = ([p for p in prompts if p.background == name] for name in ("black", "white"))
    assert [(p.drawing, p.seed) for p in black] == [(p.drawing, p.seed) for p in white]
    assert black[0].text.endswith("on a black background")
    assert len({p.text for p in black}) == 32
    assert Counter(p.held_out for p in black) == {True: 16, False: 16}
    assert Counter(p.background for p in prompts) == {name: 4 for name in BACKGROUNDS} | {"black": 32, "white": 32}


def test_prompts_depend_on_the_seed_alone():
    assert build_prompts(64, 4, 1, seed=0) == build_prompts(64, 4, 1, seed=0)
    assert build_prompts(64, 4, 1, seed=0) != build_prompts(64, 4, 1, seed=1)


def test_a_large_model_is_asked_for_everyday_subjects():
    prompts = build_prompts(1024, 20, 1, seed=5)
    assert prompts[0] == EvaluationPrompt("a red apple on a solid black background", "black", 5)
    assert prompts[0].held_out is None
    assert len({(p.text, p.seed) for p in prompts}) == len(prompts)


@pytest.mark.parametrize("steps", [1, 7, 16, 28, 60])
def test_leading_is_that_of_diffusers(steps: int):
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    assert leading(steps, 1000) == scheduler.timesteps.tolist()


def test_the_control_starts_lower_from_the_same_noise_on_the_schedule_that_leaks(random_nano: Path):
    components = load_components(random_nano)
    settings = Settings(steps=4, solver="ddim")
    first, control = (next(iter(sample(components, ["x"], [3], settings))) for sample in (own, leaky))
    assert (first.t, control.t) == (999, 751)
    unscaled = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    alpha = float(unscaled.alphas_cumprod[751]) ** 0.5
    # one DDIM step from the same noise, with v solved from x0 = alpha x − sigma v
    noise = torch.randn(first.x.shape[1:], generator=runtime.rng(3, 0, "sampling"))
    v = (alpha * noise - control.x0[0]) / (1 - alpha**2) ** 0.5
    after = float(unscaled.alphas_cumprod[501]) ** 0.5
    epsilon = (1 - alpha**2) ** 0.5 * noise + alpha * v
    assert torch.allclose(control.x[0], after * control.x0[0] + (1 - after**2) ** 0.5 * epsilon, atol=1e-4)


@pytest.fixture(scope="module")
def measured(random_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate(str(random_nano), folder, SMALL, QUIET, against=Against(bias=LEFT_OPEN)).parent


def test_metrics_say_what_was_measured_and_how(measured: Path, random_nano: Path):
    metrics = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"]["fingerprint"] == model_fingerprint(random_nano)
    assert {key: metrics["sampling"][key] for key in ("solver", "steps", "guidance", "rescale", "seed", "width")} == {
        "solver": "dpmpp_2m", "steps": 2, "guidance": 4.0, "rescale": 0.7, "seed": 0, "width": 32,
    }  # fmt: skip
    assert metrics["prompts"]["by_background"]["black"] == 4
    for arm in ("ztsnr", "leaky_control", "data"):
        assert metrics["contrast"][arm]["backgrounds"]["white"]["border_luminance"]["n"] == 4
    own_black, control_black = (
        metrics["contrast"][arm]["backgrounds"]["black"]["border_luminance"]["mean"]
        for arm in ("ztsnr", "leaky_control")
    )
    assert own_black != control_black
    assert metrics["contrast"]["data"]["black_white_gap"]["mean"] > 0.9
    assert metrics["luminance"]["ztsnr"]["images"] == metrics["prompts"]["held_out"]
    assert metrics["luminance"]["against"] == "the embedded drawings of the contrast probe"
    assert (metrics["before"], metrics["captions"]) == (None, None)
    assert metrics["no_before"] == "no recipe says what training began from"
    assert "own text encoder 2" in metrics["alignment"]["definition"]
    assert all((measured / sample["file"]).is_file() for sample in metrics["samples"])


def test_what_the_prompt_leaves_open_is_measured_and_shown(measured: Path):
    bias = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))["bias"]
    (style,) = bias["axes"]
    shares = [answer["groups"]["an animal"] for answer in style["answers"].values()]
    assert (style["extractor"], sum(share["count"] for share in shares), shares[0]["n"]) == (OWN, 2, 2)
    assert [answer["recognised"]["n"] for answer in style["answers"].values()] == [4, 4]
    page = (measured / "report.html").read_text(encoding="utf-8")
    assert "<h3>an animal: an animal</h3>" in page
    assert "a 3d render of {}" in page
    assert page.count('class="share"') == 2


def test_evaluating_again_measures_the_same(measured: Path, random_nano: Path, tmp_path: Path):
    evaluate(str(random_nano), tmp_path, SMALL, QUIET, against=Against(bias=LEFT_OPEN))
    first, again = (
        json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (measured, tmp_path)
    )
    assert first.pop("timing").keys() == again.pop("timing").keys()
    assert first == again
    for name in ("samples.png", "samples/0.png"):
        with Image.open(measured / name) as a, Image.open(tmp_path / name) as b:
            assert np.array_equal(np.asarray(a), np.asarray(b))


def test_the_page_needs_nothing_else(random_nano: Path, tmp_path: Path):
    model = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(random_nano, model)
    evaluate(str(model), tmp_path / "out", SMALL, QUIET)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "the policy lets no other script run"
    assert "alert" not in script
    assert {value[:5] for value in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data:"}
    assert page.count("<svg") == 4
    assert str(tmp_path) not in page


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_model_on_a_leaky_schedule_is_judged_without_a_control(random_nano: Path, tmp_path: Path, prediction: str):
    model = tmp_path / "model"
    shutil.copytree(random_nano, model)
    config = model / "scheduler" / "scheduler_config.json"
    text = config.read_text(encoding="utf-8").replace(
        '"rescale_betas_zero_snr": true', '"rescale_betas_zero_snr": false'
    )
    config.write_text(text.replace('"v_prediction"', f'"{prediction}"'), encoding="utf-8")
    about = json.loads((model / "terminus.json").read_text(encoding="utf-8"))
    about["schedule"] |= {
        "zero_terminal": False,
        "prediction": {"v_prediction": "velocity"}.get(prediction, prediction),
    }
    (model / "terminus.json").write_text(json.dumps(about), encoding="utf-8")
    few = replace(SMALL, extreme_images=2)
    metrics = json.loads(evaluate(str(model), tmp_path / "out", few, QUIET).read_text(encoding="utf-8"))
    assert metrics["model"]["zero_terminal"] is False
    assert metrics["contrast"]["leaky_control"] is metrics["light"]["leaky_control"] is None
    assert metrics["sampling"]["control"] == "none; the model's own schedule does not end in pure noise"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "on a leaky schedule</h3>" not in page


def test_light_is_asked_of_the_same_subjects_and_measured_on_whole_images():
    asked = light_prompts(64, 3, seed=5)
    assert [one.seed for one in asked] == [5, 6, 7, 5, 6, 7]
    assert asked[0].text == asked[3].text.replace("bright", "dark")
    assert asked[0].text.startswith("a dark image of ")
    assert light_prompts(1024, 1, seed=0)[1].text == "a bright image of a red apple"
    images = np.zeros((4, 10, 10, 3), np.uint8)
    images[1, :5], images[2], images[3, 5:] = 255, 102, 204
    found = measure_light(images)
    assert (found.dark.mean, found.bright.mean) == pytest.approx((0.25, 0.4))
    assert found.gap.mean == pytest.approx(((0.4 - 0.0) + (0.4 - 0.5)) / 2)
    assert found.dynamic_range.mean == pytest.approx((0 + 1 + 0 + 0.8) / 4)


def test_a_killed_evaluation_draws_nothing_twice(random_nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = replace(SMALL, extreme_images=2, light_images=1, inpainted_images=0)
    first = evaluate(str(random_nano), tmp_path, few, QUIET).read_text(encoding="utf-8")
    kept = sorted((tmp_path / "drawn").glob("*.png"))
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    drawn: list[int] = []
    text2img = draw.text2img

    def counted(components: object, prompts: Sequence[str], *rest: object, **more: object):
        drawn.append(len(prompts))
        return text2img(components, prompts, *rest, **more)  # pyright: ignore

    monkeypatch.setattr(draw, "text2img", counted)
    again = json.loads(evaluate(str(random_nano), tmp_path, few, QUIET).read_text(encoding="utf-8"))
    assert len(drawn) == 1, "of all batches the one whose image is damaged"
    assert again.pop("timing")
    assert again == {key: value for key, value in json.loads(first).items() if key != "timing"}
    kept_as = Kept(tmp_path / "drawn", "weights")
    kept_as.write([("a", 1)], few.sampling, np.zeros((1, 4, 4, 3), np.uint8))
    assert kept_as.read([("a", 1)], few.sampling) is not None
    assert kept_as.read([("a", 2)], few.sampling) is None, "another seed is another image"
    assert kept_as.read([("a", 1)], replace(few.sampling, steps=3)) is None
    assert replace(kept_as, who="other weights").read([("a", 1)], few.sampling) is None


def test_a_folder_that_cannot_be_made(random_nano: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        evaluate(str(random_nano), tmp_path / "file", SMALL, QUIET)


def test_alignment_is_the_cosine_of_the_text_encoders(random_nano: Path):
    components = load_components(random_nano)
    prompts = build_prompts(32, 4, 0, seed=0)
    images = real_images(prompts, 32)
    texts = [prompt.text for prompt in prompts[:4]]
    found = measure_alignment(AlignmentEncoders(components.text_encoders, components.vision), texts, list(images[:4]))
    assert found is not None
    assert components.vision is not None
    cosines = []
    for prompt, array in zip(prompts[:4], images, strict=False):
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            image = components.vision(pixel_values=pixels).image_embeds
            text = components.text_encoders.encode([prompt.text]).pooled
        cosines.append(float((normalize(image) * normalize(text)).sum()))
    assert found.cosine.mean == pytest.approx(np.mean(cosines), abs=1e-5)
    assert (found.captions, found.chance) == (4, 0.25)


def test_alignment_is_not_measured_where_it_would_mean_nothing(random_nano: Path):
    components = load_components(random_nano)
    prompts = build_prompts(32, 4, 0, seed=0)
    images = real_images(prompts, 32)
    texts = [prompt.text for prompt in prompts[:4]]
    judge = AlignmentEncoders(components.text_encoders, components.vision)
    assert measure_alignment(AlignmentEncoders(components.text_encoders, None), texts, list(images[:4])) is None
    assert measure_alignment(judge, texts[:1] * 4, list(images[:4])) is None
    assert measure_alignment(judge, texts, list(real_images(prompts[:4], 64))) is None


def test_of_a_caption_that_repeats_the_first_image_counts(random_nano: Path):
    components = load_components(random_nano)
    prompts = build_prompts(32, 4, 0, seed=0)[:4]
    images, texts = list(real_images(prompts, 32)), [prompt.text for prompt in prompts]
    judge = AlignmentEncoders(components.text_encoders, components.vision)
    once = measure_alignment(judge, texts, images, [True, False, True, False])
    more = measure_alignment(judge, [*texts, texts[1]], [*images, images[0]], [True, False, True, False, False])
    assert once is not None
    assert once == more
    assert once.top1_held_out is not None
    assert once.top1_held_out.n == 2


def test_a_fingerprint_changes_with_any_weight(random_nano: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(random_nano, model)
    assert model_fingerprint(model) == model_fingerprint(random_nano)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(model) != model_fingerprint(random_nano)
