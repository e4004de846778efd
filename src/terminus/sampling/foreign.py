"""Metadata of other programs' images, read as data: each in its own words, told in those of A1111.

What is not understood stays in the texts, and where half of it is, a note says so. Nothing is executed or looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

from pydantic_core import from_json

from terminus.sampling import comfyui, infotext

Kind = Literal["terminus", "a1111", "comfyui", "invokeai", "swarmui", "novelai", "fooocus", "none"]
_PARAMETERS = "parameters"
_SIDE = re.compile(r"\(([0-9]{1,6}), ([0-9]{1,6})\)")
"""Width and height, as Fooocus writes them."""


class ForeignMetadata(NamedTuple):
    """Whose words were understood, and what they say."""

    kind: Kind
    prompt: str
    negative: str
    settings: Mapping[str, str]


def foreign(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata:
    """The facts as the first program states them whose words these are; what could not be used goes to `notes`."""
    # In this order, for one file may have the words of several programs.
    readers = (_invokeai, _json_parameters, _a1111, _comfyui, _novelai)
    return next((said for reader in readers if (said := reader(texts, notes))), ForeignMetadata("none", "", "", {}))


def _a1111(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata | None:
    said = infotext.parse_infotext(texts.get(_PARAMETERS, ""))
    return said and ForeignMetadata("a1111", *said)


def _comfyui(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata | None:
    stored = _json(texts, "prompt", notes)
    said = comfyui.understand(stored)
    if said is not None:
        return ForeignMetadata("comfyui", *said)
    # A graph all the same, in which nothing is understood.
    if isinstance(stored, dict) or isinstance(_json(texts, "workflow", notes), dict):
        notes.append("the graph has no sampler that is understood")
        return ForeignMetadata("comfyui", "", "", {})
    return None


def _invokeai(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata | None:
    stored = _json(texts, "invokeai_metadata", notes)
    if not isinstance(stored, dict):
        return None
    names = {
        "steps": "Steps",
        "scheduler": "Sampler",
        "cfg_scale": "CFG scale",
        "seed": "Seed",
        "strength": "Denoising strength",
        "cfg_rescale_multiplier": "CFG rescale",
        "generation_mode": "Mode",
        "positive_style_prompt": "Style prompt",
        "negative_style_prompt": "Negative style prompt",
        "app_version": "Version",
    }
    model = _object(stored.get("model"))
    loras = [(_object(one.get("model")).get("name"), one.get("weight")) for one in _objects(stored.get("loras"))]
    extra = {"Model": _plain(model.get("name")), "Model hash": _plain(model.get("hash")), "Loras": _loras(loras)}
    return _said("invokeai", stored, "positive_prompt", "negative_prompt", names, extra)


def _json_parameters(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata | None:
    """JSON where A1111 has its text: SwarmUI or Fooocus."""
    if not texts.get(_PARAMETERS, "").lstrip().startswith("{"):
        return None
    stored = _object(_json(texts, _PARAMETERS, notes))
    swarm = _object(stored.get("sui_image_params"))
    if swarm:
        return _swarmui(swarm)
    return _fooocus(stored) if "base_model" in stored and "prompt" in stored else None


def _swarmui(stored: Mapping[str, Any]) -> ForeignMetadata:
    names = {
        "steps": "Steps",
        "sampler": "Sampler",
        "scheduler": "Schedule type",
        "cfgscale": "CFG scale",
        "seed": "Seed",
        "initimagecreativity": "Denoising strength",
        "model": "Model",
        "swarm_version": "Version",
    }
    # Two lists, which belong together entry by entry.
    loras = zip(_list(stored.get("loras")), _list(stored.get("loraweights")), strict=False)
    return _said("swarmui", stored, "prompt", "negativeprompt", names, {"Loras": _loras(loras)})


def _fooocus(stored: Mapping[str, Any]) -> ForeignMetadata:
    names = {
        "steps": "Steps",
        "sampler": "Sampler",
        "scheduler": "Schedule type",
        "guidance_scale": "CFG scale",
        "seed": "Seed",
        "base_model_hash": "Model hash",
        "base_model": "Model",
        "styles": "Styles",
        "performance": "Performance",
        "version": "Version",
    }
    size = _SIDE.fullmatch(_plain(stored.get("resolution")))
    loras = (_plain(value).partition(" : ")[::2] for key, value in stored.items() if key.startswith("lora_combined_"))
    extra = {"Size": f"{size[1]}x{size[2]}" if size else "", "Loras": _loras(loras)}
    return _said("fooocus", stored, "prompt", "negative_prompt", names, extra)


def _novelai(texts: Mapping[str, str], notes: list[str]) -> ForeignMetadata | None:
    stored = _json(texts, "Comment", notes) if texts.get("Software") == "NovelAI" else None
    if not isinstance(stored, dict):
        return None
    names = {
        "steps": "Steps",
        "sampler": "Sampler",
        "scale": "CFG scale",
        "seed": "Seed",
        "noise_schedule": "Schedule type",
        "strength": "Denoising strength",
        "cfg_rescale": "CFG rescale",
    }
    said = _said("novelai", stored, "prompt", "uc", names, {})
    # Newer files have the captions in parts, older ones in one text.
    prompt = _captions(stored, "v4_prompt") or said.prompt or texts.get("Description", "")
    return said._replace(prompt=prompt, negative=_captions(stored, "v4_negative_prompt") or said.negative)


def _captions(stored: Mapping[str, Any], key: str) -> str:
    """Since its fourth version: a caption of the whole, and one of each character."""
    caption = _object(_object(stored.get(key)).get("caption"))
    characters = (one.get("char_caption") for one in _objects(caption.get("char_captions")))
    return "\n".join(filter(None, map(_plain, (caption.get("base_caption"), *characters))))


def _said(
    kind: Kind,
    stored: Mapping[str, Any],
    prompt: str,
    negative: str,
    names: Mapping[str, str],
    extra: Mapping[str, str],
) -> ForeignMetadata:
    """From an object whose keys are the settings."""
    # By the names that A1111 gave them, without those that are empty.
    settings = {label: _plain(stored.get(key)) for key, label in names.items()}
    width, height = _plain(stored.get("width")), _plain(stored.get("height"))
    size = {"Size": f"{width}x{height}"} if width and height else {}
    kept = {label: value for label, value in {**settings, **size, **extra}.items() if value}
    return ForeignMetadata(kind, _plain(stored.get(prompt)), _plain(stored.get(negative)), kept)


def _loras(pairs: Iterable[tuple[object, ...]]) -> str:
    return ", ".join(f"{_plain(name)}: {_plain(weight)}" for name, weight in pairs if _plain(name))


def _plain(value: object) -> str:
    """A text or a number as text; nothing of anything else."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value) if abs(value) < 2**64 else ""
    return value if isinstance(value, str) else ""


def _object(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _objects(value: object) -> list[dict[str, Any]]:
    return [_object(one) for one in _list(value)]


def _json(texts: Mapping[str, str], name: str, notes: list[str]) -> dict[str, Any] | list[Any] | None:
    """Parsed with bounded depth, whatever it claims to be."""
    if name not in texts:
        return None
    try:
        stored: object = from_json(texts[name])
    except ValueError:
        notes.append(f"{name!r} is not JSON")
        return None
    return cast("dict[str, Any] | list[Any]", stored) if isinstance(stored, dict | list) else None
