"""The metadata of an image, read: ours, and those of other programs. Nothing found in a file is trusted.

Texts are data: bounded, never executed, never used as names of files or code, and returned with whatever control
characters they have; who shows them escapes them.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from PIL import Image

from terminus import decode, structure
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.sampling import infotext, provenance
from terminus.sampling.files import read_file
from terminus.sampling.foreign import ForeignMetadata, Kind, foreign
from terminus.sampling.generation_metadata import GenerationMetadata, from_text

PARAMETERS, OURS, XMP = "parameters", "terminus", "XML:com.adobe.xmp"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
NAMESPACE = "urn:terminus-xl:origin#"
"""Namespace of our property in XMP."""
_IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
_RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"
_MAKE, _MODEL, _DESCRIPTION = 0x010F, 0x0110, 0x010E

_USUAL = {PARAMETERS, OURS, "prompt", "workflow", "invokeai_metadata", "Comment"}
_TEXT = 1 << 24
"""Characters of one text; a longer one is left out, and said to be."""
_TEXTS = 64
_XMP_BYTES = 1 << 20
_PIXELS = 1 << 26
"""Most pixels of a PNG that is decoded to reach the texts behind them."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, OverflowError, TypeError)
"""Exceptions that Pillow's parsers raise on malformed data."""

_NAMES: Mapping[Kind, str] = {
    "terminus": "Terminus",
    "a1111": "A1111 or a program that writes its text",
    "comfyui": "ComfyUI",
    "invokeai": "InvokeAI",
    "swarmui": "SwarmUI",
    "novelai": "NovelAI",
    "fooocus": "Fooocus",
    "none": "not said",
}


@dataclass(frozen=True)
class ImageFacts:
    """Everything that one file says of its image."""

    kind: Kind
    """Whose words were understood."""
    format: str
    size: Size
    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """By the names that A1111 gave them, where it has one; in the order of the file."""
    source_type: str | None = None
    """IPTC's digital source type, such as "trainedAlgorithmicMedia"; a full address where it is not IPTC's."""
    credentials: provenance.Credentials = provenance.NO_CREDENTIALS
    notes: tuple[str, ...] = ()
    """Metadata that were found and could not be used, and why."""
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Every text of the file, as found."""

    @property
    def facts(self) -> dict[str, str]:
        """All of it in the order to show it in; what is not there is left out."""
        head = {
            "Format": self.format,
            "Pixels": f"{self.size.width}x{self.size.height}",
            "Made by": _NAMES[self.kind],
            "Prompt": self.prompt,
            "Negative prompt": self.negative,
        }
        tail = {
            "Digital source type": self.source_type or "",
            "Content credentials": str(self.credentials),
            "Notes": "; ".join(self.notes),
        }
        # A file may name its settings as it likes; they never stand in for what was found out about it.
        settings = {key: value for key, value in self.settings.items() if key not in head | tail}
        rows = head | settings | tail
        return {key: value for key, value in rows.items() if value}


def read_image_metadata(path: Path) -> ImageFacts:
    """The metadata of the PNG, JPEG or WebP at `path`; UserError if it is none of these."""
    return read_bytes(read_file(path), str(path))


def read_bytes(data: bytes, where: str = "") -> ImageFacts:
    """The same for an image in memory; `where` is what an error calls it."""
    notes: list[str] = []
    # Pillow would walk through very many parts for minutes, so such files are refused before.
    if crowded := structure.crowded(data):
        raise UserError("This is not a readable image", where=where, rule=f"It has {crowded.detail}")
    try:
        # Pillow warns of damage in EXIF; here that is an answer, not a warning.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            image = Image.open(BytesIO(data), formats=decode.FORMATS)
            found = _texts(image, notes)
            size = Size(height=image.height, width=image.width)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"This image has more than {decode.HARD_PIXEL_LIMIT} pixels", where=where) from error
    except _BROKEN as error:
        known = ", ".join(decode.FORMATS)
        raise UserError("This is not a readable image", where=where, rule=f"Formats: {known}") from error
    # Whose words these are, and what they say.
    said = _understood(found, notes)
    return ImageFacts(
        kind=said.kind,
        format="JPEG" if image.format == "MPO" else str(image.format),
        size=size,
        prompt=said.prompt,
        negative=said.negative,
        settings=said.settings,
        source_type=found.source_type,
        credentials=provenance.examine_provenance(data),
        notes=tuple(notes),
        texts=found.texts,
    )


def settings_of(facts: ImageFacts, where: str = "") -> GenerationMetadata:
    """The settings that draw the same image again; UserError unless Terminus wrote it and all of it is understood.

    `where` the image is, for that error.
    """
    if OURS not in facts.texts:
        raise UserError(
            "This image does not say how to draw it again",
            where=where,
            rule="Terminus writes that into its images, unless they are saved privately; others' settings differ",
        )
    try:
        return from_text(facts.texts[OURS])
    except ValueError as error:
        raise UserError(f"The generation metadata of this image cannot be understood ({error})", where=where) from error


class _Found(NamedTuple):
    texts: dict[str, str]
    source_type: str | None


def _texts(image: Image.Image, notes: list[str]) -> _Found:
    """Every text of the file under the name that a PNG would give it."""
    if image.format == "PNG" and _USUAL.isdisjoint(image.info) and image.width * image.height <= _PIXELS:
        image.load()  # a PNG's texts may stand behind its pixels
    # Text chunks, then EXIF; our JSON is in XMP where there are no chunks.
    texts = _strings(image.info) | _from_exif(image, notes)
    packet = image.info.get("xmp")
    source, ours = _from_xmp(packet, notes) if isinstance(packet, bytes) else (None, None)
    if ours is not None:
        texts.setdefault(OURS, ours)
    texts.pop(XMP, None)
    # Texts that are too long, then texts that are too many.
    for name in [name for name, text in texts.items() if len(text) > _TEXT]:
        notes.append(f"{name!r} has {len(texts.pop(name))} characters and was left out")
    return _Found(dict(list(texts.items())[:_TEXTS]), source)


def _strings(info: Mapping[str | tuple[int, int], object]) -> dict[str, str]:
    texts = {name: str(text) for name, text in info.items() if isinstance(name, str) and isinstance(text, str)}
    return {name: text for name, text in texts.items() if text.strip("\0 \t\r\n")}


def _from_exif(image: Image.Image, notes: list[str]) -> dict[str, str]:
    try:
        exif = image.getexif()
        comment: object = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, exif.get(USER_COMMENT))
        tags = [exif.get(tag) for tag in (_MODEL, _MAKE, *range(_MAKE - 1, _MAKE - 8, -1))]
    except _BROKEN:
        notes.append("the EXIF block is damaged")
        return {}
    texts: dict[str, str] = {}
    if isinstance(comment, str):  # Fooocus puts it beside the tag's proper place, as a plain string
        comment = comment.encode()
    if isinstance(comment, bytes) and (text := _comment(comment).strip("\0 ")):  # cameras fill the field up
        texts[PARAMETERS] = text
    for tag in tags:  # ComfyUI names its texts within the value, and takes the tags as they come
        name, colon, text = tag.partition(":") if isinstance(tag, str) else ("", "", "")
        if colon and name in ("prompt", "workflow"):
            texts.setdefault(name, text)
    return texts


def _comment(stored: bytes) -> str:
    """EXIF's UserComment: 8 bytes that name the encoding, then text. The byte order of "UNICODE" is nowhere said."""
    code, text = stored[:8], stored[8:]
    if code.startswith(b"UNICODE"):
        even = text[: len(text) // 2 * 2]
        # Prompts are mostly Latin, whose every other byte is zero; the zeros come first in big-endian.
        little = even[1::2].count(0) > even[0::2].count(0)
        return even.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")
    return (text if code.startswith((b"ASCII", b"\0\0\0\0\0\0\0\0")) else stored).decode("utf-8", "replace")


def _from_xmp(packet: bytes, notes: list[str]) -> tuple[str | None, str | None]:
    """The digital source type and our JSON. XMP never declares entities, so a packet that does is not read."""
    try:
        root = _xmp_tree(packet)
    except (ElementTree.ParseError, ValueError):
        notes.append("the XMP packet is damaged")
        return None, None
    source: str | None = None
    # Written as an attribute, as text, or as a resource: all three occur.
    for element in root.iter():
        inside = (element.get(_RESOURCE) or element.text) if element.tag == _IPTC else None
        source = source or element.get(_IPTC) or inside
    ours = root.find(f".//{{{NAMESPACE}}}origin")
    return source and source.strip().removeprefix(provenance.SOURCE_TYPES), None if ours is None else ours.text


def _xmp_tree(packet: bytes) -> ElementTree.Element:
    """The packet's XML; ValueError or ParseError for what is not read."""
    text = packet.decode("utf-8").strip("\0 \n\r\t\ufeff")
    if len(packet) > _XMP_BYTES or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("too long, or with entities")
    return ElementTree.fromstring(text)


def _understood(found: _Found, notes: list[str]) -> ForeignMetadata:
    """Our own JSON before anything that a prompt can imitate."""
    if OURS in found.texts:
        try:
            generation = from_text(found.texts[OURS])
            return ForeignMetadata(
                "terminus", generation.prompt, generation.negative, infotext.infotext_settings(generation)
            )
        except ValueError as error:
            notes.append(f"the metadata that Terminus wrote cannot be understood ({error})")
    return foreign(found.texts, notes)
