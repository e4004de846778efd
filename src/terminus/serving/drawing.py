"""From a request to the calls of `Terminus`: the same settings and edits that the command line would make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image

from terminus.conditioning import Size
from terminus.model.control import ControlInterval
from terminus.sampling.api import SamplingStep, Terminus
from terminus.sampling.canvas import Margins, Repaint, open_image
from terminus.sampling.controls import ControlInput
from terminus.sampling.edits import Edit, Hires, image_to_image, inpainting, outpainting, upscaling
from terminus.sampling.requests import requests_for
from terminus.sampling.settings import ImageRequest, Settings
from terminus.serving.jobs import JobRequest
from terminus.serving.orders import DrawOrder, Steering

_STRENGTH = 0.6
"""Of image to image, as on the command line."""


def job_settings(request: JobRequest) -> Settings:
    """The numbers of a request, with the defaults of the command line."""
    given = {
        name: value
        for name in ("steps", "guidance", "rescale", "solver", "spacing")
        if (value := getattr(request, name)) is not None
    }
    if request.interval is not None:
        given["interval"] = (request.interval[0], request.interval[1])
    if request.width is not None and request.height is not None:
        given["size"] = Size(height=request.height, width=request.width)
    return Settings(**given, variation=request.variation)


def prompt_requests(order: DrawOrder, model: Terminus) -> list[ImageRequest]:
    """One request per image."""
    del model
    request = order.request
    asked = requests_for(request.prompt, request.negative, request.seed or 0, request.count, job_settings(request))
    return [replace(one, expanded_from=request.expanded_from) for one in asked]


def draw(model: Terminus, order: DrawOrder, requests: Sequence[ImageRequest]) -> Iterator[SamplingStep]:
    """The steps of these requests, in the way that the order says."""
    settings = job_settings(order.request)
    hires = order.request.hires
    second = None if hires is None else Hires(hires.factor, hires.strength)
    controls = [_control(one) for one in order.controls]
    return model.draw(requests, settings, job_edit(order, model, settings), second, controls)


def draw_once_more(model: Terminus, order: DrawOrder) -> Image.Image:
    """The image that an order names, once more, from what it says of itself."""
    assert order.again is not None
    mask = _mask(order) if order.mask is not None else None
    return model.again(order.again, order.image, mask, [_control(one) for one in order.controls])


def job_edit(order: DrawOrder, model: Terminus, settings: Settings) -> Edit | None:
    """The edit that an order asks for; None for an image from its prompt alone."""
    request, components = order.request, model.components
    if order.image is None:
        return None
    padding = request.padding if request.crop_to_mask else None
    how = Repaint(request.fill, request.feather, padding)
    if request.task == "inpaint":
        strength = 1.0 if request.strength is None else request.strength
        return inpainting(order.image, _mask(order), strength, how, settings, components)
    if request.task == "outpaint" and request.margins is not None:
        around = request.margins
        margins = Margins(around.left, around.top, around.right, around.bottom)
        return outpainting(order.image, margins, how, settings, components)
    if request.task == "upscale":
        return upscaling(order.image, request.factor or 2.0, request.strength, settings, components)
    strength = _STRENGTH if request.strength is None else request.strength
    return image_to_image(order.image, strength, settings, components)


def _mask(order: DrawOrder) -> Image.Image:
    """The mask, white where something is drawn anew."""
    assert order.mask is not None
    pixels = open_image(order.mask).numpy()
    return Image.fromarray(255 - pixels if order.request.invert else pixels)


def _control(one: Steering) -> ControlInput:
    span = ControlInterval() if (one.start, one.end) == (0.0, 1.0) else ControlInterval(one.start, one.end)
    return ControlInput(one.kind, one.source, one.image, one.weight, span)
