"""ControlNet as A1111's clients ask for it: units among `alwayson_scripts`, and the list of networks.

A unit's image is read as it is: there are no preprocessors here, and what else a unit asks that is not done is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from terminus.errors import UserError
from terminus.serving.errors import Refusal, from_validation
from terminus.serving.interfaces.parts import service_of
from terminus.serving.jobs import Number
from terminus.serving.limits import LIMITS

api = APIRouter(prefix="/controlnet", tags=["A1111"])

SCRIPT = "controlnet"
"""The name of the script, in any case of letters."""
_PLAIN = ("none", "balanced", "both", "0", "")
"""Words of a unit that ask for nothing further."""
_UNDONE = {
    "module": "Images are not preprocessed here: send the edges, the depth or the pose itself",
    "control_mode": "The prompt and the control are balanced by the weight alone",
    "hr_option": "A control acts in both passes",
}


class ControlUnit(BaseModel):
    """One unit; fields that ask for nothing here are let through."""

    model_config = ConfigDict(extra="ignore")

    enabled: StrictBool = True
    image: Any = None
    input_image: StrictStr | None = None
    mask: Any = None
    model: StrictStr = "None"
    module: StrictStr = "none"
    weight: Annotated[Number, Field(ge=0, le=10)] = 1.0
    guidance_start: Annotated[Number, Field(ge=0, le=1)] = 0.0
    guidance_end: Annotated[Number, Field(ge=0, le=1)] = 1.0
    control_mode: StrictStr | StrictInt = 0
    hr_option: StrictStr = "Both"

    @property
    def encoded_image(self) -> str | None:
        """Base64 of its image, in any of the places where clients put it; None without one."""
        given = cast("dict[str, Any]", self.image).get("image") if isinstance(self.image, dict) else self.image
        return self.input_image or (given if isinstance(given, str) else None) or None


@api.get("/model_list")
async def list_controlnet_models(request: Request) -> dict[str, list[str]]:
    """The control networks, by the names that units give as `model`."""
    return {"model_list": [entry.id for entry in await service_of(request).catalogue.controls()]}


@api.get("/module_list")
async def list_controlnet_modules() -> dict[str, Any]:
    """The preprocessors: there are none."""
    return {"module_list": ["none"], "module_detail": {}}


@api.get("/version")
async def controlnet_version() -> dict[str, int]:
    """Of the interface, as its clients ask."""
    return {"version": 3}


def control_units(scripts: dict[str, Any]) -> list[ControlUnit]:
    """The units that are switched on; UserError for what one of them asks and is not done."""
    given = next((value for name, value in scripts.items() if name.lower() == SCRIPT), [])
    args = cast("dict[str, Any]", given).get("args") if isinstance(given, dict) else given
    if not isinstance(args, list) or len(cast("list[Any]", args)) > 2 * LIMITS.controls:
        raise UserError("This is no list of ControlNet units", where="alwayson_scripts", rule="It is {args: [...]}")
    try:
        units = [ControlUnit.model_validate(one) for one in cast("list[Any]", args)]
    except ValidationError as error:
        said, field = from_validation(list(error.errors()))
        raise Refusal(422, said, f"alwayson_scripts.controlnet.{field}") from error
    units = [unit for unit in units if unit.enabled]
    for unit in units:
        _check_done(unit)
    return units


def _check_done(unit: ControlUnit) -> None:
    for name, sentence in _UNDONE.items():
        asked = str(getattr(unit, name))
        if asked.lower() not in _PLAIN:
            raise UserError(f"{name} {asked[:60]!r} of a ControlNet unit", where="alwayson_scripts", rule=sentence)
    if unit.mask:
        rule = "A control acts on all of an image"
        raise UserError("The mask of a ControlNet unit", where="alwayson_scripts", rule=rule)
