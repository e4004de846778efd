"""Bytes from strangers to upright sRGB pixels, or a reason why not. Nothing here trusts a file.

Only JPEG, PNG and WebP are decoded: every further format is another parser to attack. Of a JPEG with
several pictures (MPO, as phones write) the first is taken; animations are refused, because which frame a
caption means is unknown.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from terminus.conditioning import Size
from terminus.data.record import Color, Dropped

FORMATS = ("JPEG", "PNG", "WEBP")
HARD_PIXEL_LIMIT = 89_478_485
"""Where Pillow begins to warn of decompression bombs; no limit of ours may lie above it."""

# The header's size is compared with our own limit; this covers the rest of Pillow's road to the header.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    OverflowError,
)
"""What Pillow's parsers raise on malformed data."""


@dataclass(frozen=True)
class Limits:
    """Checked before anything is decoded."""

    file_bytes: int
    pixels: int


@dataclass(frozen=True)
class Decoded:
    """An upright sRGB image."""

    image: Image.Image
    """Mode RGB, or RGBA if some pixel is not opaque."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels, upright."""
        return Size(self.image.height, self.image.width)

    @property
    def transparent(self) -> bool:
        """Whether a background shows anywhere."""
        return self.image.mode == "RGBA"

    def on(self, background: Color) -> Image.Image:
        """The picture over a plain background, mode RGB; composited before any resizing, as it must be."""
        if not self.transparent:
            return self.image
        canvas = Image.new("RGB", self.image.size, background)
        canvas.paste(self.image, mask=self.image.getchannel("A"))
        return canvas


def read(path: Path, root: Path, limit: int) -> bytes | Dropped:
    """The bytes of a regular file of at most `limit` bytes inside `root`; never blocks, opens no device."""
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(root.resolve()):
            return Dropped("link out of the folder", str(resolved))
        # Looked at before opening, because opening a device can act; non-blocking, should it change then.
        if not stat.S_ISREG(resolved.stat().st_mode):
            return Dropped("not a regular file")
        handle = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return Dropped("not a regular file")
            data = file.read(limit + 1)
    except RuntimeError:  # what pathlib makes of a loop before Python 3.13
        return Dropped("symbolic link in a loop")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Dropped("symbolic link in a loop")
        return Dropped("cannot be read", error.strerror or type(error).__name__)
    if len(data) > limit:
        return Dropped("file too large", f"more than {limit} bytes")
    return data


def decode(data: bytes, limits: Limits) -> Decoded | Dropped:
    """Upright sRGB pixels; EXIF orientation, colour profile, CMYK, 16 bits and palettes are handled here."""
    if len(data) > limits.file_bytes:
        return Dropped("file too large", f"more than {limits.file_bytes} bytes")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.pixels:
            return Dropped("too many pixels", f"{width}x{height}, the limit is {limits.pixels}")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            return Dropped("animated", f"{getattr(image, 'n_frames', 2)} frames")
        image.load()
        return Decoded(_plain(_upright(image)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Dropped("too many pixels", str(error))
    except UnidentifiedImageError:
        return Dropped("not a JPEG, PNG or WebP image")
    except _BROKEN as error:
        reason = "truncated" if "truncated" in str(error) else "damaged"
        return Dropped(reason, _printable(error))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. The colour profile stays with it."""
    turned = ImageOps.exif_transpose(image)
    if "icc_profile" in image.info:
        turned.info["icc_profile"] = image.info["icc_profile"]
    return turned


def _plain(image: Image.Image) -> Image.Image:
    """8-bit sRGB, mode RGB or (if anything shows through) RGBA."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling.
        levels = np.asarray(image).astype(np.float64) / 257.0
        image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    alpha: Image.Image | None = None
    if image.has_transparency_data:
        profile = image.info.get("icc_profile")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
        image.info["icc_profile"] = profile
    color = _srgb(image)
    if alpha is None or alpha.getextrema()[0] == 255:
        return color
    color.putalpha(alpha)
    return color


def _srgb(image: Image.Image) -> Image.Image:
    """Through its colour profile, if it has a usable one that is not sRGB already; else as it stands.

    Like browsers, a broken or unfitting profile is ignored.
    """
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return converted if converted is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, *_BROKEN):
            pass
    return image.convert("RGB")


def pixels(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """A writable array, as torch wants it."""
    return np.array(image)


def _printable(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
