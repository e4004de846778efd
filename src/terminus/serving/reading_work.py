"""What the reader's process does: images decoded and understood, prompts counted, models inspected."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from terminus.decode import Limits, decode
from terminus.errors import UserError
from terminus.images import Dropped
from terminus.inspection.look import look
from terminus.inspection.show import finding_json
from terminus.model.text_encoders import load_tokenizer
from terminus.model.weights import resolve
from terminus.sampling import prompts
from terminus.sampling.files import read_file
from terminus.sampling.metadata import encode_image, mark, source_type_of
from terminus.sampling.provenance import Identity, signed
from terminus.sampling.reading import OURS, PARAMETERS, ImageFacts, read_bytes
from terminus.serving.limits import LIMITS
from terminus.serving.readings import GalleryFile, Recalled, Upload
from terminus.serving.recall import recalled
from terminus.serving.safety_rules import hidden_in

_WHITE = (255, 255, 255)
_THUMBNAIL_SIDE = 320


def read_upload(data: bytes, mask: str | None = None, *, understand: bool = False) -> Upload:
    """The pixels of a stranger's image, on white; UserError for what is none.

    `mask` "transparent" makes a mask of what is transparent: white where it is. `understand` reads its settings too.
    """
    decoded = decode(data, Limits(LIMITS.upload, LIMITS.upload_pixels))
    if isinstance(decoded, Dropped):
        detail = f" ({decoded.detail})" if decoded.detail else ""
        rule = f"Images are JPEG, PNG or WebP, of at most {LIMITS.upload_pixels:,} pixels"
        raise UserError(f"This image cannot be used: {decoded.reason}{detail}", rule=rule)
    pixels = decoded.on(_WHITE)
    if mask == "transparent":
        hidden = np.zeros(pixels.shape[:2], np.uint8) if decoded.alpha is None else 255 - decoded.alpha
        pixels = np.where(hidden[..., None] > 127, 255, 0).astype(np.uint8).repeat(3, axis=2)
    known = recalled(read_bytes(data)) if understand else None
    return Upload(_png(Image.fromarray(pixels)), decoded.size.width, decoded.size.height, known)


def recall_settings(data: bytes) -> Recalled:
    """The settings that an image tells."""
    return recalled(read_bytes(data))


def read_gallery_file(path: Path) -> GalleryFile:
    """The facts of a file that was found in the gallery's folder."""
    data = read_file(path, LIMITS.upload)
    facts: ImageFacts = read_bytes(data)
    upload = read_upload(data)
    with Image.open(io.BytesIO(upload.png), formats=("PNG",)) as image:
        small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return GalleryFile(
        upload.width, upload.height, facts.texts.get(OURS, ""), facts.texts.get(PARAMETERS, ""), recalled(facts),
        file.getvalue(),
    )  # fmt: skip


def inspect_model(name: str) -> dict[str, Any]:
    """What `terminus inspect --json` says of a model or adapter, without its path."""
    finding = look(name, Console(file=io.StringIO()))
    said: dict[str, Any] = json.loads(json.dumps(finding_json(finding), allow_nan=False))
    said.pop("path", None)
    return said


def count_tokens(model: str, prompt: str) -> dict[str, Any]:
    """Chunks of a prompt with the tokens in each, its spans, and what is wrong with it."""
    problems: list[dict[str, str]] = []
    chunks: list[dict[str, int]] = []
    try:
        tokenizer, limit = _tokenizer(model)
        for spans in prompts.parse_weights(prompts.expand(prompt, 0)):
            count = sum(len(tokenizer(span.text, add_special_tokens=False)["input_ids"]) for span in spans)
            full, rest = divmod(count, limit)
            chunks += [{"tokens": limit, "limit": limit}] * full
            if rest or not full:
                chunks.append({"tokens": rest, "limit": limit})
    except UserError as error:
        problems.append({"message": error.what, "rule": error.rule, "fix": error.fix})
    return {"chunks": chunks[: prompts.MOST_CHUNKS], "problems": problems}


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> tuple[Any, int]:
    folder = resolve(model)
    place = folder / "tokenizer" if folder.is_dir() else resolve("nano") / "tokenizer"
    tokenizer = load_tokenizer(place)
    return tokenizer, tokenizer.model_max_length - 2


def enlarge_file(path: Path, factor: float) -> bytes:
    """A PNG with sides `factor` times as long (LANCZOS)."""
    with Image.open(path, formats=("PNG",)) as image:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return _png(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def encode_file(path: Path, kind: str, quality: int | None, signer: tuple[Path, Path] | None = None) -> bytes:
    """A file of the gallery as "jpeg" or "webp", which says of itself what the file does.

    `signer` signs it with the file as its parent: the file's own credentials are of other bytes.
    """
    with Image.open(path, formats=("PNG",)) as image:
        image.load()
        data = _encoded(image, kind, quality)
        if signer is None or hidden_in(json.loads(image.info.get(OURS) or "null")):
            return data
        return signed(data, Identity.load(*signer), source_type_of(image), path.read_bytes())


def _encoded(image: Image.Image, kind: str, quality: int | None) -> bytes:
    if quality is None:
        return encode_image(image, "JPEG" if kind == "jpeg" else "WEBP")
    file = io.BytesIO()
    marked = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    marked.info.update(image.info)
    mark(marked)
    marked.save(file, kind.upper(), quality=max(1, quality))
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
