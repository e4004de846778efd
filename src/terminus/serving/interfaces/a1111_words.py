"""A1111's words for our settings: its two kinds of requests, and what they come to here."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from terminus.errors import UserError
from terminus.sampling.names import SAMPLERS, solver_of, spacing_of
from terminus.serving.errors import Refusal
from terminus.serving.interfaces.a1111_controls import SCRIPT
from terminus.serving.jobs import Number, Text
from terminus.serving.limits import LIMITS

_FILLS = ("surroundings", "original", "surroundings", "grey")
"""By `inpainting_fill`: fill, original, latent noise, latent nothing."""
_NOISE = 2
_LORA = re.compile(r"<lora:([^:<>]{1,200})(?::([0-9.]{1,8}))?(?::[^<>]{0,40})?>")
_UNDONE = {
    "restore_faces": "Faces are not restored", "tiling": "Seamless tiles are not drawn",
    "styles": "There are no styles",
    "script_name": "There are no scripts",
}  # fmt: skip
NO_UPSCALER = ("None", "Lanczos")
UPSCALER = "Terminus"


class Txt2ImgRequest(BaseModel):
    """`txt2img`. Fields that clients send without meaning them are let through."""

    model_config = ConfigDict(extra="ignore")

    prompt: Text = ""
    negative_prompt: Text = ""
    seed: StrictInt = -1
    subseed: StrictInt = -1
    subseed_strength: Number = 0
    sampler_name: StrictStr | None = None
    sampler_index: StrictStr | None = None
    scheduler: StrictStr | None = None
    batch_size: Annotated[StrictInt, Field(ge=1, le=LIMITS.count)] = 1
    n_iter: Annotated[StrictInt, Field(ge=1, le=LIMITS.count)] = 1
    steps: Annotated[StrictInt, Field(ge=1, le=LIMITS.steps)] = 28
    cfg_scale: Number = 4.0
    width: Annotated[StrictInt, Field(ge=1, le=LIMITS.side)] | None = None
    height: Annotated[StrictInt, Field(ge=1, le=LIMITS.side)] | None = None
    denoising_strength: Number | None = None
    enable_hr: StrictBool = False
    hr_scale: Number = 2.0
    restore_faces: StrictBool | None = None
    tiling: StrictBool | None = None
    styles: list[StrictStr] | None = None
    script_name: StrictStr | None = None
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict[str, Any])
    override_settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    send_images: StrictBool = True


class Img2ImgRequest(Txt2ImgRequest):
    """`img2img`."""

    init_images: Annotated[list[StrictStr], Field(max_length=8)] = Field(default_factory=list[str])
    mask: StrictStr | None = None
    """White is drawn anew."""
    mask_blur: StrictInt = 4
    inpainting_fill: Annotated[StrictInt, Field(ge=0, le=3)] = 0
    inpaint_full_res: StrictBool | StrictInt = True
    inpaint_full_res_padding: StrictInt = 32
    inpainting_mask_invert: StrictInt | StrictBool = 0
    resize_mode: StrictInt = 0


class ImageData(BaseModel):
    """A request about one image."""

    image: StrictStr


class ExtraRequest(ImageData):
    """`extra-single-image`."""

    resize_mode: StrictInt = 0
    upscaling_resize: Number = 2.0
    upscaling_resize_w: StrictInt = 0
    upscaling_resize_h: StrictInt = 0
    upscaler_1: StrictStr = "None"
    upscaler_2: StrictStr = "None"


def fields_of(asked: Txt2ImgRequest) -> dict[str, Any]:
    """The fields of our request that both kinds share; adapters still by name. UserError for what is not done."""
    for name, sentence in _UNDONE.items():
        if getattr(asked, name):
            raise UserError(sentence, where=name, rule="What is not done is refused, not left out silently")
    for name, given in asked.alwayson_scripts.items():
        if name.lower() != SCRIPT and _means_something(given):
            rule = "There is ControlNet, and no other"
            raise UserError(f"There is no script {name[:60]!r}", where="alwayson_scripts", rule=rule)
    if asked.subseed >= 0 and asked.subseed_strength:
        raise UserError("A subseed", where="subseed", rule="Variations of a seed are numbered here; leave it at -1")
    named = asked.sampler_name or asked.sampler_index
    solver = solver_of(named) if named else None
    if named and solver is None:
        raise Refusal(404, UserError(f"Sampler not found: {named[:60]}", rule=f"Known: {', '.join(SAMPLERS.values())}"))
    spacing = spacing_of(asked.scheduler) if asked.scheduler else None
    if asked.scheduler and spacing is None:
        raise UserError(f"Scheduler {asked.scheduler[:60]!r}", where="scheduler", rule="GET schedulers lists them")
    prompt, adapters = without_loras(asked.prompt)
    return {
        "prompt": prompt,
        "negative": asked.negative_prompt,
        "seed": asked.seed if asked.seed >= 0 else None,
        "count": asked.batch_size * asked.n_iter,
        "steps": asked.steps,
        "guidance": asked.cfg_scale,
        "solver": solver,
        "spacing": spacing,
        "variation": asked.subseed_strength,
        "width": asked.width,
        "height": asked.height,
        "adapters": adapters,
        "hires": _hires(asked) if asked.enable_hr else None,
    }


def mask_fields(asked: Img2ImgRequest) -> dict[str, Any]:
    """The fields of an inpainting, without its images."""
    whole = not asked.inpaint_full_res
    fields: dict[str, Any] = {
        "task": "inpaint",
        "feather": asked.mask_blur,
        "fill": _FILLS[asked.inpainting_fill],
        "crop_to_mask": not whole,
        "padding": asked.inpaint_full_res_padding,
        "invert": bool(asked.inpainting_mask_invert),
    }
    if asked.inpainting_fill == _NOISE:
        fields["strength"] = 1.0
    return fields | ({"width": None, "height": None} if whole else {})


def without_loras(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """A prompt without `<lora:NAME:WEIGHT>`, and those."""
    found = [{"id": one[1], "weight": float(one[2] or 1)} for one in _LORA.finditer(prompt)]
    return (_LORA.sub("", prompt).strip() if found else prompt), found


def _hires(asked: Txt2ImgRequest) -> dict[str, Any]:
    strength = 0.7 if asked.denoising_strength is None else asked.denoising_strength
    return {"factor": asked.hr_scale, "strength": strength}


def _means_something(given: Any) -> bool:
    args = given.get("args") if isinstance(given, dict) else given
    return bool(args) and args != [False]
