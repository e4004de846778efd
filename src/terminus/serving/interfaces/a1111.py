"""A1111's interface, as its many clients call it: text and image to images, inpainting, upscaling, PNG info, progress.

Their words for our settings are in `a1111_words`. What a client asks and we do not do is refused with a sentence.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StrictStr

from terminus.errors import UserError
from terminus.sampling.names import SAMPLERS, SPACINGS
from terminus.serving.errors import Refusal, not_found
from terminus.serving.interfaces.a1111_controls import SCRIPT, control_units
from terminus.serving.interfaces.a1111_words import (
    NO_UPSCALER,
    UPSCALER,
    ExtraRequest,
    ImageData,
    Img2ImgRequest,
    Txt2ImgRequest,
    fields_of,
    mask_fields,
)
from terminus.serving.interfaces.parts import service_of, user_of
from terminus.serving.interfaces.results import add_upload, decoded, encoded, failure, job_files
from terminus.serving.jobs import Job, JobRequest, JobState
from terminus.serving.service import Service

api = APIRouter(prefix="/sdapi/v1", tags=["A1111"])

_STRENGTH = 0.75
"""A1111's own default of image to image."""


class Options(BaseModel):
    """The one option that can be set: everything else is a request's own."""

    sd_model_checkpoint: StrictStr | None = None


@api.post("/txt2img")
async def txt2img(request: Request, asked: Txt2ImgRequest) -> dict[str, Any]:
    """Images from a prompt."""
    return await _drawn(request, asked, fields_of(asked))


@api.post("/img2img")
async def img2img(request: Request, asked: Img2ImgRequest) -> dict[str, Any]:
    """Images from an image, or its masked part anew."""
    if len(asked.init_images) != 1:
        raise UserError(f"{len(asked.init_images)} images", where="init_images", rule="Exactly one image is drawn from")
    service, user = service_of(request), user_of(request)
    strength = _STRENGTH if asked.denoising_strength is None else asked.denoising_strength
    fields = {**fields_of(asked), "hires": None, "task": "image", "strength": strength}
    fields["image"] = await add_upload(service, user, decoded(asked.init_images[0]))
    if asked.mask is not None:
        fields |= {**mask_fields(asked), "mask": await add_upload(service, user, decoded(asked.mask))}
    return await _drawn(request, asked, fields)


@api.post("/extra-single-image")
async def extra_single_image(request: Request, asked: ExtraRequest) -> dict[str, Any]:
    """An image enlarged: by the model (the upscaler "Terminus"), or stretched alone."""
    service, user = service_of(request), user_of(request)
    data = decoded(asked.image)
    image = await add_upload(service, user, data)
    width, height = service.uploads.size(image)
    factor = asked.upscaling_resize
    if asked.resize_mode == 1:
        factor = max(asked.upscaling_resize_w / width, asked.upscaling_resize_h / height)
    if asked.upscaler_1 in NO_UPSCALER:
        enlarged = await service.enlarge(user, image, factor)
        return {"image": encoded(enlarged), "html_info": ""}
    if asked.upscaler_1 != UPSCALER:
        known = ", ".join((*NO_UPSCALER, UPSCALER))
        raise Refusal(404, UserError(f"Upscaler not found: {asked.upscaler_1[:60]}", rule=f"Known: {known}"))
    fields = {"model": _model(service, user), "task": "upscale", "image": image, "factor": factor}
    job = await service.wait(await service.submit(user, JobRequest.model_validate(fields)), request)
    if job.state is JobState.FAILED:
        raise failure(job)
    images = await job_files(service, job)
    return {"image": encoded(images[0]) if images else "", "html_info": ""}


@api.post("/png-info")
async def png_info(request: Request, asked: ImageData) -> dict[str, Any]:
    """The settings that an image tells."""
    read = await service_of(request).read_settings(decoded(asked.image))
    known = read["request"]
    parameters = {"Prompt": known.get("prompt", ""), "Negative prompt": known.get("negative", ""), **read["settings"]}
    return {"info": read["text"], "items": {"parameters": read["text"]}, "parameters": parameters}


@api.get("/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far this user's present job is, with its preview."""
    service, user = service_of(request), user_of(request)
    jobs = [job for job in service.engine.jobs(user) if not job.state.over]
    running = next((job for job in jobs if job.state is JobState.RUNNING), None)
    if running is not None:
        service.engine.watch(running)
    share, preview = service.events.last_step(running.id) if running else (0.0, None)
    shown = None if skip_current_image or preview is None else encoded(preview)
    return {
        "progress": share,
        "eta_relative": service.engine.outlook.seconds_left(running) if running else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "" if running is None else running.id,
            "job_count": len(jobs),
            "job_timestamp": _timestamp(running.created if running else time.time()),
            "job_no": 0,
            "sampling_step": running.step if running else 0,
            "sampling_steps": running.steps if running else 0,
        },
        "current_image": shown,
        "textinfo": None,
    }


@api.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Ends this user's present job; what it has finished is its answer."""
    return _interrupted(request)


@api.post("/skip")
async def skip(request: Request) -> dict[str, Any]:
    """The same: a job is one batch here."""
    return _interrupted(request)


def _interrupted(request: Request) -> dict[str, Any]:
    engine = service_of(request).engine
    for job in engine.jobs(user_of(request)):
        if job.state is JobState.RUNNING:
            engine.cancel(job)
    return {}


@api.get("/options")
async def get_options(request: Request) -> dict[str, Any]:
    """The checkpoint in use."""
    service = service_of(request)
    entry = await service.catalogue.inspected(_model(service, user_of(request)))
    sha256 = ((entry.finding or {}).get("hashes") or {}).get("sha256", "")
    return {"sd_model_checkpoint": _title(service, entry.id), "sd_checkpoint_hash": sha256, "samples_format": "png"}


@api.post("/options")
async def set_options(request: Request, asked: Options) -> dict[str, Any]:
    """Chooses this user's checkpoint."""
    service = service_of(request)
    if asked.sd_model_checkpoint is not None:
        service.chosen_models[user_of(request)] = _known(service, asked.sd_model_checkpoint)
    return {}


@api.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """The solvers."""
    return [{"name": theirs, "aliases": [ours], "options": {}} for ours, theirs in SAMPLERS.items()]


@api.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The timestep spacings."""
    usual = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [usual] + [
        {"name": ours, "label": theirs, "aliases": [theirs], "default_rho": -1.0, "need_inner_model": False}
        for ours, theirs in SPACINGS.items()
    ]


@api.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The models; a file's name is its id, for paths are nobody's business."""
    service = service_of(request)
    found: list[dict[str, Any]] = []
    for entry in await service.catalogue.models():
        hashes = (entry.finding or {}).get("hashes") or {}
        found.append({
            "title": _title(service, entry.id), "model_name": entry.id, "hash": hashes.get("model_hash"),
            "sha256": hashes.get("sha256"), "filename": f"{entry.id}.safetensors", "config": None,
        })  # fmt: skip
    return found


@api.get("/loras")
async def loras(request: Request) -> list[dict[str, Any]]:
    """The adapters, which a prompt names as `<lora:NAME:WEIGHT>`."""
    found = await service_of(request).catalogue.adapters()
    return [
        {"name": one.id, "alias": one.id, "path": f"{one.id}.safetensors", "metadata": (one.finding or {}).get("about")}
        for one in found
    ]


@api.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """What enlarges: nothing, a stretch, or the model."""
    rest = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return [{"name": name, **rest} for name in (*NO_UPSCALER, UPSCALER)]


@api.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, Any]]:
    """How the second pass enlarges."""
    return [{"name": "Lanczos"}]


@api.get("/memory")
async def memory() -> dict[str, Any]:
    """The machine's memory is not told."""
    return {"ram": {"free": 0, "used": 0, "total": 0}, "cuda": {"error": "not told"}}


@api.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """ControlNet alone."""
    return {"txt2img": [SCRIPT], "img2img": [SCRIPT]}


@api.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """How the server was started is not told."""
    return {"api": True}


@api.get("/sd-vae")
@api.get("/hypernetworks")
@api.get("/face-restorers")
@api.get("/realesrgan-models")
@api.get("/prompt-styles")
async def nothing() -> list[Any]:
    """There are none of these."""
    return []


@api.get("/embeddings")
async def embeddings() -> dict[str, Any]:
    """There are none."""
    return {"loaded": {}, "skipped": {}}


@api.post("/refresh-checkpoints")
async def refresh_checkpoints() -> None:
    """The folders are looked at when the server starts."""


async def _drawn(request: Request, asked: Txt2ImgRequest, fields: dict[str, Any]) -> dict[str, Any]:
    service, user = service_of(request), user_of(request)
    override = asked.override_settings.get("sd_model_checkpoint")
    model = _known(service, override) if isinstance(override, str) else _model(service, user)
    for one in fields["adapters"]:
        one["id"] = await service.catalogue.find(one["id"]) or one["id"]
    fields["controls"] = await _controls(service, user, asked, fields.get("image"))
    job = await service.submit(user, JobRequest.model_validate({"model": model, **fields}))
    await service.wait(job, request)
    if job.state is JobState.FAILED:
        raise failure(job)
    shown = service.gallery.several(user, job.images)
    images = [encoded(one) for one in await job_files(service, job)] if asked.send_images else []
    sent = asked.model_dump(exclude={"init_images", "mask"})
    return {"images": images, "parameters": sent, "info": json.dumps(_info(service, job, shown))}


async def _controls(service: Service, user: str, asked: Txt2ImgRequest, image: str | None) -> list[dict[str, Any]]:
    """The controls of a request; a unit without an image reads the one that is drawn from."""
    controls: list[dict[str, Any]] = []
    for unit in control_units(asked.alwayson_scripts):
        given = unit.encoded_image
        seen = image if given is None else await add_upload(service, user, decoded(given))
        if seen is None:
            raise UserError("A ControlNet unit has no image", where="alwayson_scripts", rule="It reads one as base64")
        place = {"start": unit.guidance_start, "end": unit.guidance_end}
        controls.append({"id": unit.model, "image": seen, "weight": unit.weight, **place})
    return controls


def _info(service: Service, job: Job, shown: list[dict[str, Any]]) -> dict[str, Any]:
    asked, seeds = job.request, [one["seed"] for one in shown]
    entry = service.catalogue.entry(asked.model)
    hashes = (entry.finding or {}).get("hashes") or {}
    return {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * len(shown),
        "negative_prompt": asked.negative,
        "all_negative_prompts": [asked.negative] * len(shown),
        "seed": asked.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(shown),
        "subseed_strength": asked.variation,
        "width": shown[0]["width"] if shown else asked.width,
        "height": shown[0]["height"] if shown else asked.height,
        "sampler_name": SAMPLERS[asked.solver or "dpmpp_2m"],
        "cfg_scale": asked.guidance,
        "steps": asked.steps,
        "batch_size": asked.count,
        "sd_model_name": asked.model,
        "sd_model_hash": hashes.get("model_hash"),
        "denoising_strength": asked.strength,
        "index_of_first_image": 0,
        "infotexts": [one["parameters"] for one in shown],
        "job_timestamp": _timestamp(job.created),
        "version": f"Terminus {service.version}",
        "image_ids": job.images,
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%S")


def _model(service: Service, user: str) -> str:
    chosen = service.chosen_models.get(user) or service.catalogue.first
    if chosen is None:
        raise not_found("model")
    return chosen


def _title(service: Service, key: str) -> str:
    hashes = (service.catalogue.entry(key).finding or {}).get("hashes") or {}
    return f"{key} [{hashes['model_hash']}]" if hashes.get("model_hash") else key


def _known(service: Service, name: str) -> str:
    """The id of a checkpoint by title, name, file name or hash."""
    for key in service.catalogue.ids():
        hashes = (service.catalogue.entry(key).finding or {}).get("hashes") or {}
        known = (key, f"{key}.safetensors", _title(service, key), hashes.get("model_hash"), hashes.get("sha256"))
        if name in known:
            return key
    raise Refusal(404, UserError(f"Checkpoint not found: {name[:100]}", rule="GET sd-models lists them"))
