"""The classifier of `--safety` at work: every finished image is looked at before it leaves the worker."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as their_logging

from terminus.errors import UserError
from terminus.sampling.reading import OURS, PARAMETERS
from terminus.serving.safety_rules import Hidden, SafetyRules

_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError)
"""What transformers raises on folders that are incomplete, malformed, or of a class that it does not know."""
_GREY, _INK = (58, 58, 62), (205, 205, 210)


class SafetyFilter:
    """A classifier in memory, with the rules that it serves."""

    def __init__(self, rules: SafetyRules, device: torch.device) -> None:
        self._rules, self._device = rules, device
        self._processor, self._network = _loaded(rules.folder, device)

    def look(self, image: Image.Image) -> Hidden | None:
        """Why this image is not to be shown; None where it is."""
        inputs = self._processor(images=image.convert("RGB"), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            logits: torch.Tensor = self._network(**inputs).logits[0].float()
        config = self._network.config
        several = config.problem_type == "multi_label_classification"
        probabilities: list[float] = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        if not all(0 <= one <= 1 for one in probabilities):  # NaN would be below every threshold
            raise UserError("The safety filter's classifier gives no number for this image")
        return self._rules.judge({config.id2label[place]: one for place, one in enumerate(probabilities)})


def placeholder(size: tuple[int, int], why: Hidden) -> bytes:
    """A plain PNG of this size that says, to people and to programs, that an image was hidden, and why."""
    width, height = size
    image = Image.new("RGB", size, _GREY)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(8, width // 16))
    lines = f"Hidden\n{why.label} {why.score:.2f}\n(threshold {why.threshold:g})"
    pen.multiline_text((width / 2, height / 2), lines, _INK, font, anchor="mm", align="center")
    said = PngInfo()
    said.add_text(PARAMETERS, why.sentence)
    said.add_text(OURS, json.dumps(why.record()))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=said)
    return file.getvalue()


def _loaded(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """The processor and the network: safetensors alone, and no code that comes with a folder."""
    their_logging.disable_progress_bar()
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = cast(Any, AutoImageProcessor).from_pretrained(folder, **known)
        network, about = cast(Any, AutoModelForImageClassification).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **known
        )
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The safety filter's classifier cannot be read ({reason})", where=str(folder)) from error
    if about["missing_keys"]:  # transformers would fill them with random numbers, and judge by those
        missing = sorted(about["missing_keys"])
        what = f"{len(missing)} weights of the classifier are missing, the first is {missing[0]}"
        raise UserError(what, where=str(folder), rule="A classifier is used whole or not at all")
    return processor, network.eval().to(device)
