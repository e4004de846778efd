"""The native interface's models and adapters: what they are, how that is known, and what their licences say."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from terminus.serving.catalogue import CatalogueEntry
from terminus.serving.control_networks import CONTROL_TITLES
from terminus.serving.drawable import drawable
from terminus.serving.errors import not_found
from terminus.serving.interfaces.parts import service_of, user_of
from terminus.serving.service import Service, restrictions

api = APIRouter(prefix="/api/v1", tags=["models"])

_PREDICTIONS = {"velocity": "v", "epsilon": "epsilon"}


@api.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    """All models; the first is the one that is loaded at the start."""
    service = service_of(request)
    found = await service.catalogue.models()
    return {"models": [model_shown(service, user_of(request), entry) for entry in found]}


@api.get("/models/{key}")
async def get_model(request: Request, key: str) -> dict[str, Any]:
    """One model, with all that `terminus inspect` finds."""
    service = service_of(request)
    entry = await service.catalogue.inspected(key)
    return {**model_shown(service, user_of(request), entry), "report": entry.finding}


@api.post("/models/{key}/consent", status_code=204)
async def consent(request: Request, key: str) -> Response:
    """Agrees to the restrictions of a model's licence."""
    service_of(request).consent(user_of(request), key)
    return Response(status_code=204)


@api.get("/models/{key}/thumbnail")
async def model_thumbnail(request: Request, key: str) -> FileResponse:
    """The image that lies beside a model or an adapter."""
    catalogue = service_of(request).catalogue
    path = catalogue.thumbnail(catalogue.entry(key))
    if path is None:
        raise not_found("thumbnail")
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
    return FileResponse(path, media_type=kinds[path.suffix.lower()])


@api.get("/adapters")
async def list_adapters(request: Request, model: str | None = None) -> dict[str, Any]:
    """All adapters, and whether each fits a model: the first, unless another is named."""
    service = service_of(request)
    key = model or service.catalogue.first
    base = None if key is None else await service.catalogue.inspected(key)
    return {"adapters": [adapter_shown(service, entry, base) for entry in await service.catalogue.adapters()]}


def model_shown(service: Service, user: str, entry: CatalogueEntry) -> dict[str, Any]:
    """A model as clients see it."""
    said = entry.finding or {}
    hashes = said.get("hashes") or {}
    components = said.get("components") or {}
    loaded = any(entry.name in worker.loaded for worker in service.engine.workers)
    about = said.get("about") or {}
    warnings = list(said.get("conflicts") or [])
    warnings += [f"It has no {name}" for name in said.get("missing") or []]
    if entry.problem:
        warnings.append(entry.problem["message"])
    return {
        "id": entry.id,
        "name": entry.id,
        "title": about.get("title") or entry.id,
        "kind": said.get("kind"),
        "architecture": said.get("architecture"),
        "task": said.get("task"),
        "hash": hashes.get("model_hash"),
        "sha256": hashes.get("sha256"),
        "prediction": _PREDICTIONS.get(str(said.get("prediction")), said.get("prediction")),
        "zero_terminal_snr": said.get("zero_terminal"),
        "evidence": said.get("evidence") or [],
        "warnings": warnings,
        "licence": said.get("licence"),
        "restrictions": restrictions(entry),
        "size_bytes": sum(part.get("bytes", 0) for part in components.values()),
        "native_size": service.native(entry),
        **drawable(entry.path, service.native(entry), said.get("zero_terminal") and said.get("prediction") != "flow"),
        "loaded": loaded,
        "usable": entry.problem is None,
        "thumbnail": _thumbnail(service, entry),
        "trigger": about.get("trigger_phrase"),
        "needs_consent": service.needs_consent(user, entry),
        "about": about,
    }


def adapter_shown(service: Service, entry: CatalogueEntry, base: CatalogueEntry | None) -> dict[str, Any]:
    """An adapter as clients see it."""
    said = entry.finding or {}
    about = said.get("about") or {}
    fits, why = _fits(said, (base.finding or {}) if base else {})
    tags = said.get("tags") or []
    phrase = about.get("trigger_phrase")
    return {
        "id": entry.id,
        "name": entry.id,
        "title": about.get("title") or entry.id,
        "kind": ", ".join(said.get("method") or []),
        "ranks": said.get("ranks"),
        "trigger": [phrase] if phrase else list(tags),
        "base": said.get("base_model"),
        "prediction": _PREDICTIONS.get(str(said.get("prediction")), said.get("prediction")),
        "fits": fits,
        "why": why,
        "hash": (said.get("hashes") or {}).get("tensors_sha256"),
        "licence": about.get("license"),
        "thumbnail": _thumbnail(service, entry),
        "size_bytes": (said.get("tensors") or {}).get("bytes", 0),
        "about": about,
    }


def control_shown(entry: CatalogueEntry) -> dict[str, Any]:
    """A control network as clients see it."""
    kind = entry.control
    title, sentence = CONTROL_TITLES[kind]
    return {"id": entry.id, "title": f"{entry.id} ({title})", "kind": kind, "sentence": sentence}


def _fits(adapter: dict[str, Any], model: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether an adapter was trained on a model of this prediction; None where it does not say."""
    trained, predicts = adapter.get("prediction"), model.get("prediction")
    if trained is None or predicts is None:
        return None, "The file does not say on what prediction it was trained"
    if trained != predicts:
        return False, f"It was trained on a model that predicts {trained}; this one predicts {predicts}"
    terminal = adapter.get("zero_terminal")
    if terminal is not None and terminal != model.get("zero_terminal"):
        return False, "It was trained on another noise schedule: one of the two has zero terminal SNR"
    return True, ""


def _thumbnail(service: Service, entry: CatalogueEntry) -> str | None:
    there = service.catalogue.thumbnail(entry) is not None
    return f"api/v1/models/{entry.id}/thumbnail" if there else None
