"""What a picture says of itself: how to make it again, and that a model made it.

Three chunks, each for its own readers. `parameters` is the text that A1111 began and most galleries and front-ends
read. `terminus` is JSON with everything that decides the pixels; it is the one to trust, since a prompt may itself
contain "Steps: 3". XMP names the digital source type of IPTC, the mark that platforms look for.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terminus.conditioning import Size
from terminus.model.record import Schedule
from terminus.runtime import Precision

PARAMETERS, OURS, XMP = "parameters", "terminus", "XML:com.adobe.xmp"
_SAMPLERS = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
}
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="Terminus {version}"
    Iptc4xmpExt:DigitalSourceType="{source_type}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


@dataclass(frozen=True)
class Origin:
    """Everything that decides a picture."""

    prompt: str
    negative: str
    seed: int
    steps: int
    solver: str
    guidance: float
    rescale: float
    size: Size
    precision: Precision
    model: str
    model_hash: str
    """SHA-256 of the weights' file, in hex."""
    schedule: Schedule


def version() -> str:
    """Of this package."""
    return metadata.version("terminus-xl")


def attach(picture: Image.Image, origin: Origin) -> None:
    """Writes the chunks into `picture.info`, under the keys that Pillow gives them when it reads a PNG."""
    size = {"width": origin.size.width, "height": origin.size.height}
    ours = {"version": version(), **asdict(origin), "size": size}
    picture.info[PARAMETERS] = parameters(origin)
    picture.info[OURS] = json.dumps(ours, ensure_ascii=False, sort_keys=True)
    picture.info[XMP] = _PACKET.format(version=version(), source_type=_SOURCE_TYPE)


def save(picture: Image.Image, path: Path) -> None:
    """Writes a PNG with its chunks (Pillow's own `save` leaves them out); FileExistsError rather than overwrite."""
    chunks = PngInfo()
    for key in (PARAMETERS, OURS):
        if key in picture.info:
            chunks.add_text(key, picture.info[key])
    if XMP in picture.info:
        chunks.add_itxt(XMP, picture.info[XMP])
    with path.open("xb") as file:
        picture.save(file, "PNG", pnginfo=chunks)


def parameters(origin: Origin) -> str:
    """The text of the `parameters` chunk: prompt, negative prompt if there is one, one line of `Key: value`."""
    schedule = origin.schedule
    facts = {
        "Steps": origin.steps,
        "Sampler": _SAMPLERS[origin.solver],
        "Schedule type": "SGM Uniform",
        "CFG scale": f"{origin.guidance:g}",
        "Seed": origin.seed,
        "Size": f"{origin.size.width}x{origin.size.height}",
        "Model hash": origin.model_hash[:10],
        "Model": origin.model,
        "Prediction": "v" if schedule.prediction == "velocity" else "epsilon",
    }
    if schedule.zero_terminal:
        facts["Noise Schedule"] = "Zero Terminal SNR"
    if origin.rescale:
        facts["CFG rescale"] = f"{origin.rescale:g}"
    facts["Version"] = f"Terminus {version()}"
    negative = [f"Negative prompt: {origin.negative}"] if origin.negative else []
    line = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items())
    return "\n".join([origin.prompt, *negative, line])


def _quoted(value: str) -> str:
    """A value that holds the line's own punctuation is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value
