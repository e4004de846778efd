"""An image's settings as a request: what our own files say exactly, and what others' come nearest to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from terminus.errors import UserError
from terminus.sampling.generation_metadata import GenerationMetadata
from terminus.sampling.limits import SEEDS
from terminus.sampling.names import solver_of, spacing_of
from terminus.sampling.reading import ImageFacts, settings_of
from terminus.serving.limits import LIMITS
from terminus.serving.readings import Recalled

_TASKS = {"text2img": "text", "img2img": "image", "inpaint": "inpaint", "outpaint": "outpaint", "upscale": "upscale"}


def recalled(facts: ImageFacts) -> Recalled:
    """The settings in an image's metadata; none is an answer too."""
    text = facts.texts.get("parameters", "")
    if facts.kind == "terminus":
        try:
            generation = settings_of(facts)
        except UserError:
            pass
        else:
            return _ours(generation, facts, text)
    notes = list(facts.notes)
    # Other programs' settings are strangers' input: each is checked, and a note says what was dropped.
    request = _foreign(facts.settings, notes)
    if facts.prompt or facts.negative:
        request |= {"prompt": facts.prompt[: LIMITS.prompt], "negative": facts.negative[: LIMITS.prompt]}
    return Recalled(
        facts.kind, request, facts.settings.get("Model", ""), facts.settings.get("Model hash", ""),
        notes=tuple(notes), settings=facts.settings, text=text,
    )  # fmt: skip


def _ours(generation: GenerationMetadata, facts: ImageFacts, text: str) -> Recalled:
    request = request_of(generation)
    notes = list(facts.notes)
    if generation.task != "text2img":
        notes.append("The image that it was drawn from is only named by its hash; give it again")
    if generation.controls:
        notes.append("Its control images are only named by their hashes; give them again")
    adapters = tuple((one.name, one.sha256, one.weight) for one in generation.adapters)
    return Recalled(
        "terminus", request, generation.model, generation.model_hash, adapters, tuple(notes), facts.settings, text
    )  # fmt: skip


def request_of(generation: GenerationMetadata) -> dict[str, Any]:
    """The fields of a request that draws the same, as far as it is drawn from a prompt alone."""
    size = generation.enlargement.source if generation.enlargement else generation.size
    request: dict[str, Any] = {
        "task": _TASKS[generation.task],
        "prompt": generation.template or generation.prompt,
        "expanded_from": generation.expanded_from,
        "negative": generation.negative,
        "seed": generation.seed,
        "steps": generation.steps,
        "guidance": generation.guidance,
        "rescale": generation.rescale,
        "solver": generation.solver,
        "spacing": generation.spacing,
        "interval": list(generation.interval) if generation.interval else None,
        "variation": generation.variation.strength if generation.variation else 0.0,
        "width": size.width,
        "height": size.height,
    }
    if generation.task == "text2img" and generation.enlargement:
        request["hires"] = {"factor": generation.enlargement.factor, "strength": generation.strength}
    elif generation.strength is not None:
        request["strength"] = generation.strength
    if generation.task == "upscale" and generation.enlargement:
        request |= {"factor": generation.enlargement.factor, "width": None, "height": None}
    if mask := generation.mask:
        request |= {"fill": mask.fill, "feather": mask.feather, "crop_to_mask": mask.crop_padding is not None}
        request |= {"padding": mask.crop_padding} if mask.crop_padding is not None else {"width": None, "height": None}
    if generation.margins:
        request["margins"] = dict(zip(("left", "top", "right", "bottom"), generation.margins, strict=True))
    return {name: value for name, value in request.items() if value is not None}


def _foreign(settings: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    request: dict[str, Any] = {}
    for field_name, key, read in (
        ("steps", "Steps", _whole(1, LIMITS.steps)),
        ("seed", "Seed", _whole(0, SEEDS - 1)),
        ("guidance", "CFG scale", _number(0, 100)),
        ("rescale", "CFG rescale", _number(0, 1)),
        ("strength", "Denoising strength", _number(0.01, 1)),
        ("solver", "Sampler", solver_of),
        ("spacing", "Schedule type", spacing_of),
    ):
        said = settings.get(key)
        if said is None:
            continue
        value = read(said)
        if value is None:
            notes.append(f"{key} is {said[:60]!r}, which has no counterpart here")
        else:
            request[field_name] = value
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", "")):
        request |= {"width": int(size[1]), "height": int(size[2])}
    return request


def _whole(low: int, high: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return int(text) if re.fullmatch(r"\d{1,19}", text) and low <= int(text) <= high else None

    return read


def _number(low: float, high: float) -> Callable[[str], float | None]:
    def read(text: str) -> float | None:
        return float(text) if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text) and low <= float(text) <= high else None

    return read
