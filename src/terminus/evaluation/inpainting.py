"""Inpainting judged: does what the mask hides shine through, and can the edge of the mask be seen?

Images that the model drew get a hole in the middle, once over black and once over white, and are painted anew from the
same prompt and seed. Whatever the two answers differ by has leaked through the mask. It is asked in two ways: as
Terminus paints, which replaces what is hidden, and with the hidden part left in place, as programs do that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from terminus.errors import UserError
from terminus.evaluation.kept import Kept
from terminus.evaluation.luminance import Mean, luma, mean_of
from terminus.evaluation.prompts import EvaluationPrompt
from terminus.model.components import Components
from terminus.sampling.api import Terminus
from terminus.sampling.canvas import Repaint
from terminus.sampling.settings import Settings

HIDDEN = {"black": 0, "white": 255}
WAYS = {"replaced": "surroundings", "in place": "original"}
"""What becomes of the hidden part, and the fill that does it."""
PAINTED = len(HIDDEN) * len(WAYS)
"""Images that are painted for each."""
DEFINITIONS = {
    "leak": "absolute difference of the mean luma inside the mask between two images that differ in the hidden part "
    "alone, black or white; 0 is ideal",
    "seam": "step of luma across the edge of the mask minus the mean step one pixel beside it, on both sides; 0 is no "
    "seam, and `before` is the same place of the images before they were painted",
}
Stack = UInt8[np.ndarray, "_ _ _ 3"]


@dataclass(frozen=True)
class InpaintedImages:
    """The images with their holes painted, by what became of the hidden part and by what was hidden."""

    before: Stack
    painted: Mapping[tuple[str, str], Stack]
    """(way, hidden colour) to images."""


@dataclass(frozen=True)
class WayResult:
    """One way of painting."""

    leak: Mean
    seam: Mean


@dataclass(frozen=True)
class Inpainting:
    """Leak and seam, by way."""

    images: int
    ways: dict[str, WayResult]
    seam_before: Mean


def hole(height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """True in the middle quarter of the image."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def draw_inpainted(
    components: Components,
    images: Stack,
    prompts: Sequence[EvaluationPrompt],
    settings: Settings,
    kept: Callable[[str], Kept],
    advance: Callable[[int], None],
) -> InpaintedImages | None:
    """Paints the holes of the first images; None for a model that cannot inpaint.

    `kept` gives the place of each way's images by its name.
    """
    model, mask = Terminus(components, Path(), settings.precision), hole(*images.shape[1:3])
    shown = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
    painted: dict[tuple[str, str], Stack] = {}
    for way, fill in WAYS.items():
        for name, level in HIDDEN.items():
            found: list[np.ndarray] = []
            place = kept(f"inpainted {way} {name}")
            for image, prompt in zip(images, prompts, strict=True):
                asked = [(prompt.prompt, prompt.seed)]
                # Batches of one: an image that is here already is not drawn again.
                one = place.read(asked, settings)
                if one is None:
                    # The two images differ in what is hidden alone: what differs after painting has leaked.
                    over = Image.fromarray(np.where(mask[..., None], level, image).astype(np.uint8))
                    try:
                        (drawn,) = model.inpaint(
                            prompt.prompt, over, shown, repaint=Repaint(fill=fill), seed=prompt.seed,
                            steps=settings.steps, guidance=settings.guidance, solver=settings.solver,
                        )  # fmt: skip
                    except UserError:
                        return None
                    one = np.asarray(drawn)[None]
                    place.write(asked, settings, one)
                found.append(one[0])
                advance(1)
            painted[way, name] = np.stack(found)
    return InpaintedImages(images, painted)


def measure_inpainting(drawn: InpaintedImages) -> Inpainting:
    """Of at least one image."""
    mask = hole(*drawn.before.shape[1:3])
    ways: dict[str, WayResult] = {}
    for way in WAYS:
        # Black and white were hidden under the same mask with the same seed.
        inside = [luma(drawn.painted[way, name])[:, mask].mean(axis=1) for name in HIDDEN]
        seams = [seam_contrast(drawn.painted[way, name], mask) for name in HIDDEN]
        ways[way] = WayResult(mean_of(np.abs(inside[1] - inside[0])), mean_of((seams[0] + seams[1]) / 2))
    return Inpainting(len(drawn.before), ways, mean_of(seam_contrast(drawn.before, mask)))


def seam_contrast(images: Stack, mask: Bool[np.ndarray, "height width"]) -> np.ndarray:
    """One number per image: the step across the edge of the mask, less the steps beside it."""
    values = luma(images)
    across: list[np.ndarray] = []
    beside: list[np.ndarray] = []
    for axis in (1, 2):
        steps = np.abs(np.diff(values, axis=axis))
        # Steps from a pixel inside the mask to one outside.
        edge = np.diff(mask.astype(np.int8), axis=axis - 1) != 0
        # One pixel before and one behind, along the direction of the step.
        near = np.roll(edge, 1, axis=axis - 1) | np.roll(edge, -1, axis=axis - 1)
        across.append(steps[:, edge])
        beside.append(steps[:, near & ~edge])
    return np.concatenate(across, axis=1).mean(axis=1) - np.concatenate(beside, axis=1).mean(axis=1)
