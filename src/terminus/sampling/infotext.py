"""The text that A1111 began and that most galleries and front-ends read: written and read here.

Prompt lines, "Negative prompt: ..." lines, and one last line of `Key: value, Key: value`, where a value that holds the
line's own punctuation is a JSON string. A prompt may itself look like such a line, so the text is not to be trusted
where something better is at hand.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from terminus.sampling.generation_metadata import GenerationMetadata, version
from terminus.sampling.names import SAMPLERS, SPACINGS

_FILLS = {"surroundings": "fill", "grey": "latent nothing"}
_NEGATIVE = "Negative prompt:"
_LONGEST_LINE = 1 << 16
_FEWEST = 3
"""Keys that a last line needs; with fewer it is part of the prompt."""
# A key is bounded, or a line of one long word would be searched from each of its letters.
_KEY = re.compile(r"(\w[\w \-/]{1,63}):\s*")
_STRING = re.compile(r'"(?:\\.|[^\\"])+"(?=,|$)')
_INSIDE = re.compile(r'\\.|["{}\[\]]')


class Infotext(NamedTuple):
    """The parts of such a text. Values are as they stand there, unquoted."""

    prompt: str
    negative: str
    settings: dict[str, str]


def parameters(generation: GenerationMetadata) -> str:
    """The text for one image."""
    negative = [f"{_NEGATIVE} {generation.negative}"] if generation.negative else []
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in infotext_settings(generation).items())
    return "\n".join([generation.prompt, *negative, line])


def infotext_settings(generation: GenerationMetadata) -> dict[str, str]:
    """The last line's keys and values, in its order."""
    schedule, enlarged = generation.schedule, generation.enlargement
    size = enlarged.source if enlarged else generation.size  # as A1111: the size before "Hires upscale"
    facts: dict[str, object] = {
        "Steps": generation.steps,
        "Sampler": SAMPLERS.get(generation.solver, generation.solver),
        "Schedule type": SPACINGS.get(generation.spacing, generation.spacing),
        "CFG scale": f"{generation.guidance:g}",
        "Seed": generation.seed,
        "Size": f"{size.width}x{size.height}",
        "Model hash": generation.model_hash[:10],
        "Model": generation.model,
        **_initial(generation),
        **_additions(generation),
        "RNG": "Terminus",  # noise of our own making: no other program's generator draws the same
        "Prediction": "v" if schedule.prediction == "velocity" else schedule.prediction,
    }
    # Said only where it is not what a reader would assume.
    if schedule.zero_terminal and schedule.prediction != "flow":
        facts["Noise Schedule"] = "Zero Terminal SNR"
    if generation.rescale:
        facts["CFG rescale"] = f"{generation.rescale:g}"
    if generation.expanded_from is not None:
        facts["Expanded from"] = generation.expanded_from
    if generation.interval not in (None, (0.0, 1.0)):
        facts["CFG interval"] = "{:g}-{:g}".format(*generation.interval)
    facts["Version"] = f"Terminus {version()}"
    return {key: str(value) for key, value in facts.items()}


def _initial(generation: GenerationMetadata) -> dict[str, object]:
    """Entries about the image and the mask that were begun from."""
    facts: dict[str, object] = {}
    if generation.strength is not None:
        facts["Denoising strength"] = f"{generation.strength:g}"
    if generation.image_sha256:
        facts["Init image hash"] = generation.image_sha256[:10]
    if generation.margins:
        facts["Outpaint margins"] = " ".join(str(side) for side in generation.margins)
    if mask := generation.mask:
        facts["Mask blur"] = mask.feather
        facts["Masked content"] = _FILLS.get(mask.fill, mask.fill)
        if mask.inverted:
            facts["Mask mode"] = "Inpaint not masked"
        if mask.crop_padding is not None:
            facts["Inpaint area"] = "Only masked"
            facts["Masked area padding"] = mask.crop_padding
    return facts


def _additions(generation: GenerationMetadata) -> dict[str, object]:
    """Entries about variation, enlargement, adapters and controls."""
    facts: dict[str, object] = {}
    if generation.variation:
        facts["Variation seed"] = generation.variation.seed
        facts["Variation seed strength"] = f"{generation.variation.strength:g}"
    if enlarged := generation.enlargement:
        facts["Hires upscale"] = f"{enlarged.factor:g}"
        facts["Hires steps"] = generation.steps if enlarged.steps is None else enlarged.steps
        facts["Hires upscaler"] = enlarged.method
        if enlarged.tile is not None:
            facts["Tile size"], facts["Tile overlap"] = enlarged.tile, enlarged.overlap or 0
    for number, control in enumerate(generation.controls):
        facts[f"ControlNet {number}"] = f"Module: {control.kind}, Model: {control.name}, Weight: {control.scale:g}"
    if generation.adapters:
        facts["Lora hashes"] = ", ".join(f"{one.name}: {one.sha256[:12]}" for one in generation.adapters)
        facts["Lora weights"] = ", ".join(f"{one.name}: {one.weight:g}" for one in generation.adapters)
    return facts


def parse_infotext(text: str) -> Infotext | None:
    """The parts of `text`, or None if it does not end in a line of settings."""
    *lines, last = text.strip().split("\n")
    found = _fields(last) if len(last) <= _LONGEST_LINE else {}
    if len(found) < _FEWEST:
        return None
    # The prompt ends where the negative one begins, which goes on to the line of settings.
    starts = next((n for n, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[starts:])[len(_NEGATIVE) :]
    return Infotext("\n".join(lines[:starts]).strip(), negative.strip(), found)


def _fields(line: str) -> dict[str, str]:
    """By key; of a key that comes twice the last one counts, as in A1111."""
    found: dict[str, str] = {}
    start, json_closes = 0, True
    while key := _KEY.search(line, start):
        # A string ends at its quotation mark, JSON at its last bracket, any other value at a comma.
        begin = inner = key.end()
        if string := _STRING.match(line, begin):
            inner = string.end()
        elif json_closes and line.startswith(("{", "["), begin):
            # Some programs write JSON as it is; where one is never closed, no other is looked for: time stays linear.
            inner = _json_end(line, begin)
            json_closes = inner > begin
        comma = line.find(",", inner)
        end = len(line) if comma < 0 else comma
        found[key[1]] = _unquoted(line[begin:end].strip())
        start = end + 1
    return found


def _json_end(line: str, begin: int) -> int:
    """Behind the bracket that closes the one at `begin`; `begin` where none does."""
    depth, in_string = 0, False
    # Brackets within strings close nothing.
    for token in _INSIDE.finditer(line, begin):
        if token[0] == '"':
            in_string = not in_string
        elif not in_string and token[0] in "{}[]":
            depth += 1 if token[0] in "{[" else -1
            if depth == 0:
                return token.end()
    return begin


def _quoted(value: str) -> str:
    """A value that holds the line's own punctuation is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
