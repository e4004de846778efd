"""Which model SD.Next takes a single file for: it looks at the size and the words of the path, before any content.

The facts are those of its `modules/sd_detect.py` and `modules/sd_models.py` of 2026-07-23 (commit 058a7f0cf), and were
tried with that code. Its list has some eighty words; kept here are those that stand in ordinary words and names.
A model's folder says by `model_index.json` what it is, and an adapter by its metadata, whatever they are called.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from terminus.errors import UserError
from terminus.model.record import Schedule

log = logging.getLogger("terminus")

_XL, _INPAINT, _INSTRUCT = "Stable Diffusion XL", "Stable Diffusion XL Inpaint", "Stable Diffusion XL Instruct"
_OLDER, _THIRD = "Stable Diffusion 1.5", "Stable Diffusion 3"
_FLOW = ("flow", "bigaspv25", "noobai-rf")
_VELOCITY = ("vpred", "v-pred", "v_pred")
_SIZES = (
    (3138, 3142, _XL),
    (3361, 3369, "Stable Diffusion Upscale"),
    (4135, 4137, _THIRD),
    (4891, 4899, _INPAINT),
    (4970, 4976, "Stable Diffusion 2"),
    (5693, 5697, _THIRD),
    (5791, 5799, "Stable Diffusion XL Refiner"),
    (6420, 7220, _XL),
    (9791, 9799, _INSTRUCT),
    (10363, 10365, _THIRD),
    (15029, 15227, _THIRD),
    (18414, 18420, _THIRD),
    (20000, 40000, "FLUX"),
)
"""First and last size in MiB, rounded, and what it takes such a file for. SDXL in 16 bits has 6,617 of them."""
_WORDS = {
    "sana": "Sana",
    "kolors": "Kolors",
    "pony-v7": "AuraFlow",
    "sd3": _THIRD,
    "chroma": "Chroma",
    "lens": "Lens",
    "flux": "FLUX",
    "anima-": "Anima",
    "f-lite": "F-Lite",
    "wan": "Wan",
}
"""Its first list, in its order, overrules the size: sanatorium, chromatic, lenses, influx, elf-lite, swan, taiwan."""
_LATER_WORDS = {
    "bria": "Bria",
    "fibo": "Bria",
    "qwen": "Qwen",
    "firered": "Qwen",
    "nextstep": "NextStep",
    "sdxl-turbo": _XL,
    "stable-diffusion-xl": _XL,
    "prx-": "PRX",
    "ideogram": "Ideogram",
}
"""Its second list overrules the first: umbria, fibonacci, ideograms."""


def check_name(target: Path, schedule: Schedule) -> None:
    """UserError for a name by which SD.Next would sample this model in a way that gives noise."""
    name = target.stem.lower()
    taken = next((word for word in _FLOW if word in name.replace("flower", "")), None)
    if taken is not None and schedule.prediction != "flow":
        raise UserError(
            f"The name contains {taken!r}", where=str(target),
            rule="SD.Next decides by the name, and would sample this model with flow matching",
            fix="Choose another name",
        )  # fmt: skip
    if schedule.prediction != "velocity" and _says_velocity(name):
        raise UserError(
            f"The name says velocity prediction, the model predicts {schedule.prediction}", where=str(target),
            rule="SD.Next decides by the name, and would sample noise", fix="Choose another name",
        )  # fmt: skip


def warn(written: Path, schedule: Schedule, channels: object, sdxl: bool) -> None:
    """Warns of a name that hides what a file is, and of a name or size by which SD.Next takes it for another model.

    `channels` is what the UNet's first convolution reads; `sdxl` says whether the file has SDXL's shapes: others
    SD.Next cannot load at all, so that their sizes and words do not matter.
    """
    name, velocity = written.stem.lower(), schedule.prediction == "velocity"
    hidden = {"inpaint": "inpainting"} if channels == 9 and "inpaint" not in name else {}
    if velocity and not _says_velocity(name):
        hidden["vpred"] = "velocity prediction"
    if schedule.prediction == "flow" and not any(word in name.replace("flower", "") for word in _FLOW):
        hidden["flow"] = "rectified flow"
    endings = list(hidden)
    if sdxl and "xl" not in name:
        endings.insert(0, "xl")
    better = _renamed(written, endings)
    if hidden:
        log.warning("%s: SD.Next decides by the file's name; %s would tell it %s",
                    written.name, better, " and ".join(hidden.values()))  # fmt: skip
    if sdxl:
        # `stable-diffusion-xl`, a word of SD.Next's own, overrules the size and most other words.
        candidates = [better, _renamed(written, ["stable-diffusion-xl", *hidden])]
        example = _renamed(Path(f"...{written.suffix}"), ["xl", "vpred"] if velocity else ["xl"])
        _warn_of_another_model(written, channels, candidates, example)


def _warn_of_another_model(written: Path, channels: object, candidates: list[str], example: str) -> None:
    """Warns where SD.Next takes the file for another model, with the first of the `candidates` that helps."""
    size = round(written.stat().st_size / 2**20)
    taken, reason = taken_for(written.name, size)
    if _right(taken, channels):
        return
    fitting = (other for other in candidates if _right(taken_for(other, size)[0], channels))
    log.warning("%s: SD.Next takes it for %s, by %s; rename it%s to %s", written.name, taken, reason,
                " and its .yaml" if written.with_suffix(".yaml").exists() else "",
                next(fitting, f"a name without that word, such as {example}"))  # fmt: skip


def taken_for(name: str, size: int) -> tuple[str, str]:
    """The model that SD.Next takes a file of this name and size (in MiB) for, and what made it."""
    name = name.lower()
    large = "xl" in name
    model, reason = (_XL, "") if large else (_OLDER, f'its {size} MiB and no "xl" in its name')
    # The size, and then each list of words overrules what came before.
    for first, last, kind in _SIZES:
        if first <= size <= last:
            model, reason = kind, f"its {size} MiB"
    for words in (_WORDS, _LATER_WORDS):
        word = _first_word(name, words)
        if word is not None:
            model, reason = words[word], f'"{word}" in its name'
    if model == _XL and "inpaint" in name:
        return _INPAINT, '"inpaint" in its name'
    if model == _XL and "instruct" in name:
        return _INSTRUCT, '"instruct" in its name'
    return model, reason


def _first_word(name: str, words: Iterable[str]) -> str | None:
    for word in words:
        # Of chroma it asks that no xl stands beside it.
        if word in name and not (word == "chroma" and "xl" in name):
            return word
    return None


def _right(taken: str, channels: object) -> bool:
    """Whether SDXL of this kind works when it is loaded as `taken`; its class for inpainting draws from text, too."""
    return taken in (_XL, _INPAINT) or (taken == _INSTRUCT and channels == 8)


def _says_velocity(name: str) -> bool:
    return any(word in name for word in _VELOCITY)


def _renamed(path: Path, endings: list[str]) -> str:
    """The name with more endings, of which `vpred` stays the last."""
    stem = path.stem
    if stem.lower().endswith("-vpred"):
        stem, endings = stem[: -len("-vpred")], [*endings, "vpred"]
    return f"{'-'.join([stem, *endings])}{path.suffix}"
