"""The metadata of an image, written: how to make it again, and that a model made it.

Three texts, each for its own readers. `parameters` is what galleries and front-ends read (`infotext`). `terminus` is
JSON with everything that decides the pixels; it is the one to trust, since a prompt may itself contain
"Steps: 3". XMP names the digital source type of IPTC, the mark that platforms look for; it stays when the other two
are left out.

A PNG carries them in text chunks. JPEG and WebP have none: there `parameters` is EXIF's UserComment, where A1111 puts
it, and the JSON is a property of our own in XMP, where no other program stumbles over it.
"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terminus.errors import UserError
from terminus.sampling.files import write_new
from terminus.sampling.generation_metadata import GenerationMetadata, Task, to_json, version, without_surrogates
from terminus.sampling.infotext import parameters
from terminus.sampling.provenance import DRAWN, REDRAWN, SOURCE_TYPES, Identity, signed
from terminus.sampling.reading import (
    EXIF_IFD,
    NAMESPACE,
    OURS,
    PARAMETERS,
    USER_COMMENT,
    XMP,
    ImageFacts,
    read_image_metadata,
    settings_of,
)

__all__ = [
    "GenerationMetadata",
    "ImageFacts",
    "attach_metadata",
    "mark",
    "parameters",
    "read_image_metadata",
    "save_image",
    "settings_of",
    "version",
]

Format = Literal["PNG", "JPEG", "WEBP"]
FORMATS: dict[str, Format] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By the suffixes of file names."""
_QUALITY = 95
_DRAWN = "terminus size"
"""In `info`: width and height when it was drawn. At another size it is not the image that its texts speak of."""
_BLOCK = 65_000
"""Bytes that JPEG holds in one place, and a little less."""
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
_END = " </rdf:RDF>"
_OURS_IN_XMP = """  <rdf:Description rdf:about="" xmlns:terminus="{namespace}">
   <terminus:origin>{ours}</terminus:origin>
  </rdf:Description>
"""


class CannotHold(UserError):
    """A format has no place for this image or for what it says; PNG has."""


class Marked(Image.Image):
    """An image whose own `save` keeps what it says of itself, as far as the format has a place for it.

    `save` of this module does more: lossless WebP, JPEG of good quality, private, signed, never over another file.
    """

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As Pillow's. Whoever gives `pnginfo` or `exif` decides what is said beside the mark, `xmp` replaces it."""
        carried = _carried(self)
        if params.keys() & {"pnginfo", "exif", "xmp"}:
            carried = _only_mark(carried)
        blocks = _blocks(carried)
        # Where the texts are too long for JPEG, the mark alone.
        if any(len(block) > _BLOCK for block in blocks.values()):
            blocks = _blocks(_only_mark(carried))
        chunks = _chunks(carried, params.pop("pnginfo", None))
        super().save(fp, format, **({"pnginfo": chunks, **blocks} | params))


def attach_metadata(image: Image.Image, generation: GenerationMetadata) -> None:
    """Writes the texts into `image.info`, under the keys that Pillow gives them when it reads a PNG."""
    image.info[PARAMETERS] = parameters(generation)
    image.info[OURS] = to_json(generation)
    mark(image, generation.task)


def mark(image: Image.Image, task: Task = "text2img") -> None:
    """Only that a model made it: for sheets and previews, which no single origin repeats."""
    source_type = DRAWN if task == "text2img" else REDRAWN
    image.info[XMP] = _PACKET.format(version=version(), source_type=SOURCE_TYPES + source_type)
    image.info[_DRAWN] = image.size
    image.__class__ = Marked


def source_type_of(image: Image.Image) -> str:
    """Whether an image of ours was drawn out of another one: its mark says so."""
    return REDRAWN if REDRAWN in str(image.info.get(XMP)) else DRAWN


def save_image(
    image: Image.Image,
    path: Path,
    *,
    private: bool = False,
    signer: Identity | None = None,
    parent: bytes | None = None,
) -> None:
    """Writes PNG, JPEG (quality 95, full colour resolution) or WebP (lossless) by the suffix, with what it carries.

    `private` leaves out prompt, settings and model; that a model made the image stays. `signer` adds content
    credentials, which name `parent`, the file that the image was drawn from, as such. FileExistsError rather than
    overwrite, OSError if the disk refuses, UserError if the format cannot hold the image. What cannot be written
    whole is not left behind in part.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(FORMATS)
        raise UserError(f"`{path.suffix}` is no format for images", where=str(path), rule=f"Known suffixes: {known}")
    data = encode_image(image, kind, private=private)
    if signer is not None:
        data = signed(data, signer, source_type_of(image), parent)
    write_new(path, data)


def encode_image(image: Image.Image, kind: Format, *, private: bool = False) -> bytes:
    """The bytes that `save` writes; for servers."""
    info = _only_mark(_carried(image)) if private else _carried(image)
    file = BytesIO()
    bare = image.copy()  # a plain image, whose `save` adds nothing
    if kind == "PNG":
        bare.save(file, "PNG", pnginfo=_chunks(info))
        return file.getvalue()
    try:
        if kind == "JPEG":
            bare.save(file, "JPEG", quality=_QUALITY, subsampling=0, optimize=True, **_blocks(info))
        else:
            # `quality` of a lossless WebP is effort; `exact` keeps colours under full transparency.
            bare.save(file, "WEBP", lossless=True, quality=60, exact=True, **_blocks(info))
    except (ValueError, OSError) as error:
        rule = "JPEG holds 65,535 pixels a side and 64 KiB of text, no transparency; WebP holds 16,383 pixels a side"
        raise CannotHold(f"This image cannot be {kind} ({error})", rule=rule, fix="Save it as PNG") from error
    return file.getvalue()


def _carried(image: Image.Image) -> dict[str, str]:
    carried = {key: str(value) for key, value in image.info.items() if key in (PARAMETERS, OURS, XMP)}
    return carried if image.info.get(_DRAWN, image.size) == image.size else _only_mark(carried)


def _only_mark(carried: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in carried.items() if key == XMP}


def _blocks(info: dict[str, str]) -> dict[str, bytes]:
    """The metadata of files that have no text chunks: EXIF and XMP."""
    blocks = {"exif": _exif(info[PARAMETERS])} if PARAMETERS in info else {}
    return blocks | ({"xmp": _packet(info)} if XMP in info else {})


def _chunks(info: dict[str, str], more: PngInfo | None = None) -> PngInfo:
    chunks = PngInfo()
    chunks.chunks += more.chunks if more else []
    for key in (PARAMETERS, OURS):
        if key in info:
            chunks.add_text(key, _storable(info[key]))
    if XMP in info:
        chunks.add_itxt(XMP, info[XMP])
    return chunks


def _exif(text: str) -> bytes:
    """EXIF with a UserComment alone. Pillow would give it the type BYTE, on which the readers of A1111 stumble.

    Big-endian, because they disagree whether the text after "UNICODE" follows the byte order of the block.
    """
    comment = b"UNICODE\0" + _storable(text).encode("utf-16-be")
    long, undefined = 4, 7
    # TIFF's header, a directory that leads to EXIF's, and that one with its single entry.
    header = struct.pack(">2sHI", b"MM", 42, 8)
    first = struct.pack(">HHHIII", 1, EXIF_IFD, long, 1, 26, 0)
    second = struct.pack(">HHHIII", 1, USER_COMMENT, undefined, len(comment), 44, 0)
    return b"Exif\0\0" + header + first + second + comment


def _packet(info: dict[str, str]) -> bytes:
    packet = info[XMP]
    if OURS in info and _END in packet:
        # Our JSON is a property of its own, at the end of the packet.
        ours = _OURS_IN_XMP.format(namespace=NAMESPACE, ours=escape(info[OURS]))
        packet = packet.replace(_END, ours + _END)
    return packet.encode("utf-8")


def _storable(text: str) -> str:
    """Without the two things that end or break such a text elsewhere: NUL and halves of characters."""
    return without_surrogates(text.replace("\0", "\ufffd"))
