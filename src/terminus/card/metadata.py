"""The YAML front matter: what the Hugging Face Hub reads of a card. Written by its own library, so it parses there."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData

from terminus.card.energy import Energy
from terminus.card.escape import line
from terminus.card.facts import FinishedRun

TASK = "text-to-image"


def card_metadata(run: FinishedRun, more: Mapping[str, object] | None = None) -> ModelCardData:
    """The front matter of a run's card, and `more`: a key without a value is left out."""
    results = evaluation_results(run)
    optional: dict[str, object] = {}
    if run.embedded:
        optional["language"] = ["en"]
    if run.base_model is not None:
        optional["base_model"] = run.base_model
        optional["base_model_relation"] = "finetune"
    # The hub shows results only beside a model's name, so the two come together.
    if results:
        optional["metrics"] = list(dict.fromkeys(result.metric_type for result in results))
        optional |= {"eval_results": results, "model_name": line(run.name)}
    if run.energy.grams is not None:
        optional["co2_eq_emissions"] = _emissions(run, run.energy.grams)
    # The hub's gallery of examples.
    widget = [{"text": line(sample.prompt), "output": {"url": sample.file}} for sample in run.samples]
    if widget:
        optional["widget"] = widget
    if run.licence is not None:
        optional["license"] = run.licence.id
        if run.licence.id == "other":
            optional["license_name"] = line(run.licence.name)
    return ModelCardData(library_name="diffusers", pipeline_tag=TASK, tags=_tags(run), **optional, **(more or {}))  # pyright: ignore[reportArgumentType]


def _emissions(run: FinishedRun, grams: float) -> dict[str, object]:
    from_nothing = run.facts.text("begun_from") == "random weights"
    return {
        "emissions": round(grams, 3),
        "source": _source(run.energy),
        "training_type": "pre-training" if from_nothing else "fine-tuning",
        **({"geographical_location": line(place)} if (place := run.recipe.text("run.region")) else {}),
        "hardware_used": line(run.facts.text("environment.hardware") or "not stated"),
    }


def _source(energy: Energy) -> str:
    if energy.measured:
        return f"energy {energy.kind} x the stated grid factor"
    return f"estimate: training hours x {energy.assumption} x the stated grid factor"


def _tags(run: FinishedRun) -> list[str]:
    tags = [TASK, "stable-diffusion-xl", "diffusers:StableDiffusionXLPipeline", "safetensors", "terminus-xl"]
    if run.scheduler.text("prediction_type") == "v_prediction":
        tags.append("v-prediction")
    if run.is_flow:
        tags.append("rectified-flow")
    if run.scheduler.flag("rescale_betas_zero_snr"):
        tags.append("zero-terminal-snr")
    return tags


def evaluation_results(run: FinishedRun) -> list[EvalResult]:
    """The main numbers of metrics.json."""
    metrics = run.metrics
    against = line(metrics.text("luminance.against") or "images that are not stated")
    measured = [
        (
            "border_luminance",
            "contrast probe: border luminance, asked for black",
            "contrast.ztsnr.backgrounds.black.border_luminance",
        ),
        (
            "border_luminance",
            "contrast probe: border luminance, asked for white",
            "contrast.ztsnr.backgrounds.white.border_luminance",
        ),
        ("luminance_wasserstein", f"luminance histogram distance to {against}", "luminance.ztsnr"),
        (
            "own_text_encoder_retrieval",
            "top-1 caption retrieval by the model's own text encoders",
            "alignment.ztsnr.top1",
        ),
    ]
    # Numbers of different prompts do not compare: the data set's name tells them apart.
    if metrics.text("prompts.kind") == "embedded":
        probe = "terminus-embedded-drawings", "contrast probe of Terminus, about its embedded Fluent emoji drawings"
    else:
        probe = "terminus-contrast-prompts", "contrast probe of Terminus, about everyday subjects"
    held_out = "run-held-out", "held-out captions and images of the run's own data"
    own = held_out if metrics.text("captions.kind") == "held-out" else probe
    results: list[EvalResult] = []
    for kind, name, path in measured:
        found = metrics.at(path)
        value = found.number("wasserstein") if kind == "luminance_wasserstein" else found.number("mean")
        if value is not None:
            dataset = probe if kind == "border_luminance" else own
            result = EvalResult(TASK, *dataset, metric_type=kind, metric_value=round(value, 6), metric_name=name)
            results.append(result)
    return [*results, *_distances(run)]


def _distances(run: FinishedRun) -> list[EvalResult]:
    """FID, KID, CMMD and CLIP scores, each with what it depends on."""
    results: list[EvalResult] = []
    found = run.metrics.at("image_set")
    reference = line(found.text("reference") or "")
    for one in found.list("distributions"):
        network, sizes = line(one.text("extractor") or "features"), f"{one.number('drawn')} images"
        names = {"frechet": "fid" if one.text("kind") == "Inception" else "frechet_distance"}
        for path, kind in {**names, "kid.mean": "kid", "cmmd": "cmmd"}.items():
            value = one.number(path)
            if value is not None:
                what = f"{kind} on {network}, {sizes}, {one.number('reference')} of the reference"
                data = "reference-images", reference or "a reference"
                results.append(
                    EvalResult(TASK, *data, metric_type=kind, metric_value=round(value, 6), metric_name=what)
                )
    for one in found.list("agreement"):
        value = one.number("score.mean")
        if value is not None and one.text("kind") == "CLIP":
            what = f"CLIP score, {line(one.text('extractor') or '')}, {one.number('images')} images"
            data = "captions-drawn", "captions that were drawn for the evaluation"
            results.append(
                EvalResult(TASK, *data, metric_type="clip_score", metric_value=round(value, 6), metric_name=what)
            )
    return results
