"""Bytes from strangers to upright sRGB pixels, or a reason why not. Nothing here trusts a file.

Only JPEG, PNG and WebP are decoded: every further format is another parser to attack. Of a JPEG with
several images (MPO, as phones write) the first is taken; animations are refused, because which frame a
caption means is unknown.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, UnidentifiedImageError

from terminus import structure
from terminus.conditioning import Size
from terminus.images import Color, Dropped

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

_ORIENTATION = 0x0112
"""The EXIF tag."""

_TURNS: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What makes an image upright, by the orientation it was stored in; 1 is upright."""


@dataclass(frozen=True)
class Limits:
    """Checked before anything is decoded."""

    file_bytes: int
    pixels: int
    known: bool = False
    """Whether these bytes were decoded before, so that the checksum of their pixels need not be compared again."""


@dataclass(frozen=True)
class Decoded:
    """An upright sRGB image."""

    rgb: UInt8[np.ndarray, "height width 3"]
    alpha: UInt8[np.ndarray, "height width"] | None
    """None if every pixel is opaque."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels, upright."""
        return Size(self.rgb.shape[0], self.rgb.shape[1])

    def on(self, background: Color) -> UInt8[np.ndarray, "height width 3"]:
        """The image over a plain background; composited before any resizing, as it must be."""
        if self.alpha is None:
            return self.rgb
        # In whole numbers: 255 · 255 and what is added fit into 16 bits.
        cover = self.alpha[..., None].astype(np.uint16)
        mixed = self.rgb * cover + np.array(background, np.uint16) * (255 - cover) + 128
        return ((mixed + (mixed >> 8)) >> 8).astype(np.uint8)  # exactly round(mixed / 255)


def decode(data: bytes, limits: Limits) -> Decoded | Dropped:
    """Upright sRGB pixels; EXIF orientation, colour profile, CMYK, 16 bits and palettes are handled here."""
    if len(data) > limits.file_bytes:
        return Dropped("file too large", f"more than {limits.file_bytes} bytes")
    if refused := structure.crowded(data):
        return refused
    try:
        # The header alone; pixels are decoded when they are first asked for.
        image = Image.open(BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > limits.pixels:
            return Dropped("too many pixels", f"{width}x{height}, the limit is {limits.pixels}")
        if getattr(image, "is_animated", False) and image.format != "MPO":
            return Dropped("animated", f"{getattr(image, 'n_frames', 2)} frames")
        # What the pixels would cost, and whether they are those that were written.
        refused = structure.costly_jpeg(data, width * height) or structure.damaged_png(data, not limits.known)
        return refused or _pixels(image, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Dropped("too many pixels", f"more than {HARD_PIXEL_LIMIT}")
    except UnidentifiedImageError:
        return Dropped("not a JPEG, PNG or WebP image", "by its content" if data else "the file is empty")
    except _BROKEN as error:
        return _broken(error)


def of_image(image: Image.Image) -> Decoded | Dropped:
    """The same of a Pillow image of any format: one that was opened from a file is what `decode` makes of the file.

    Whoever opened it has looked at its size; of an animation it is the frame that is shown.
    """
    try:
        return _converted(image)
    except _BROKEN as error:
        return _broken(error)


def _broken(error: BaseException) -> Dropped:
    return Dropped("truncated" if "truncated" in str(error) else "damaged", _printable(error))


def _pixels(image: Image.Image, data: bytes) -> Decoded:
    rgb = _fast_jpeg(image, data)
    if rgb is None:
        return _converted(image)
    return Decoded(np.ascontiguousarray(_TURNS.get(_orientation(image), np.asarray)(rgb)), None)


def _converted(image: Image.Image) -> Decoded:
    turn = _TURNS.get(_orientation(image), np.asarray)
    image.load()
    color, alpha = _plain(image)
    # np.array copies: torch wants writable memory.
    rgb = np.array(turn(np.asarray(color)), order="C")
    return Decoded(rgb, None if alpha is None else np.ascontiguousarray(turn(np.asarray(alpha))))


def _orientation(image: Image.Image) -> int:
    """1 to 8. An EXIF block that cannot be read does not cost the image: it is taken as stored."""
    try:
        value: object = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) else 1


def _fast_jpeg(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "height width 3"] | None:
    """The common kind of photograph, read by libjpeg-turbo straight into an array: Pillow's pixels, sooner.

    Anything unusual returns None, and Pillow decides.
    """
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or _profile(image) is not None:
        return None
    # Here, since whoever trains on latents or draws decodes no JPEG, and need not have it.
    import simplejpeg

    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _plain(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """8-bit sRGB, and the alpha channel if anything shows through."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling.
        levels = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB"), None
    # The profile is of the colours alone, so alpha is set aside before they are converted.
    profile = _profile(image)
    if not image.has_transparency_data:
        return _srgb(image, profile), None
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    return _srgb(image.convert("RGB"), profile), None if alpha.getextrema()[0] == 255 else alpha


def _profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The embedded colour profile, unless it is sRGB or (as browsers do) too broken to use."""
    embedded = image.info.get("icc_profile")
    if not embedded:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(embedded))
        return None if "srgb" in ImageCms.getProfileDescription(profile).lower() else profile
    except (ImageCms.PyCMSError, *_BROKEN):
        return None


def _srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    # Modes that a profile can be of; palettes and others are colours first.
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile is not None:
        try:
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, *_BROKEN):
            converted = None  # a profile of another colour model than the image's
        if converted is not None:
            return converted
    return image.convert("RGB")


def _printable(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
