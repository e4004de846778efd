from __future__ import annotations

import struct
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from terminus.conditioning import Size
from terminus.decode import Decoded, Limits, decode
from terminus.images import Dropped

LIMITS = Limits(file_bytes=10_000_000, pixels=1_000_000)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes) -> Decoded:
    result = decode(data, LIMITS)
    assert isinstance(result, Decoded), result
    return result


def reason(data: bytes, limits: Limits = LIMITS) -> str:
    result = decode(data, limits)
    assert isinstance(result, Dropped)
    return result.reason


def halves(left: object, right: object, mode: str, size: tuple[int, int] = (40, 20)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = halves((255, 0, 0), (0, 0, 255), "RGB")
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values that undo each orientation
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(encoded(stored, "JPEG", exif=exif, quality=100, subsampling=0))
    assert result.size == Size(20, 40)
    assert np.abs(result.rgb.astype(int) - np.asarray(upright).astype(int)).max() <= 3


def test_cmyk_becomes_rgb():
    result = decoded(encoded(halves((0, 255, 255, 0), (0, 0, 0, 255), "CMYK"), "JPEG", quality=100, subsampling=0))
    shown = result.rgb
    assert shown[10, 5].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert shown[10, 35].tolist() == pytest.approx([0, 0, 0], abs=4)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    shown = decoded(encoded(Image.fromarray(ramp))).rgb
    assert shown[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_small_modes(mode):
    shown = decoded(encoded(halves((0, 0, 0), (255, 255, 255), "RGB").convert(mode))).rgb
    assert shown[5, 5].tolist() == [0, 0, 0]
    assert shown[5, 35].tolist() == [255, 255, 255]


def test_alpha_is_composited_on_the_background():
    result = decoded(encoded(halves((255, 0, 0, 128), (0, 255, 0, 0), "RGBA")))
    assert result.alpha is not None
    shown = result.on((0, 0, 255))
    assert shown[5, 5].tolist() == [128, 0, 127]
    assert shown[5, 35].tolist() == [0, 0, 255], "the colour under a fully transparent pixel must not show"


@pytest.mark.parametrize("make", ["palette", "grey-alpha", "keyed"])
def test_other_kinds_of_transparency(make):
    if make == "palette":
        data = encoded(halves((255, 0, 0, 255), (0, 255, 0, 0), "RGBA").quantize(4))
    elif make == "grey-alpha":
        data = encoded(halves((200, 255), (10, 0), "LA"))
    else:
        data = encoded(halves((255, 0, 0), (0, 255, 0), "RGB"), transparency=(0, 255, 0))
    shown = decoded(data).on((0, 0, 255))
    assert shown[5, 35].tolist() == [0, 0, 255]
    assert shown[5, 5].tolist() in ([255, 0, 0], [200, 200, 200])


def test_an_opaque_alpha_channel_is_none():
    assert decoded(encoded(Image.new("RGBA", (9, 9), (1, 2, 3, 255)))).alpha is None


def test_a_colour_profile_is_converted_to_srgb():
    wide = ImageCms.ImageCmsProfile(swapped_profile()).tobytes()
    shown = decoded(encoded(Image.new("RGB", (8, 8), (200, 40, 40)), icc_profile=wide)).rgb
    assert shown[4, 4].tolist() == pytest.approx([40, 200, 40], abs=3)


def test_a_broken_profile_is_ignored():
    shown = decoded(encoded(Image.new("RGB", (8, 8), (200, 40, 40)), icc_profile=b"no profile")).rgb
    assert shown[4, 4].tolist() == [200, 40, 40]


def swapped_profile() -> BytesIO:
    """An sRGB profile whose red and green primaries are exchanged, with another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    place, length = struct.unpack(">II", data[tags[b"desc"] + 4 : tags[b"desc"] + 12])
    data[place : place + length] = data[place : place + length].replace(
        "sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be")
    )
    return BytesIO(bytes(data))


def test_truncated_files():
    for form in ("JPEG", "PNG", "WEBP"):
        whole = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), form)
        assert reason(whole[: len(whole) // 2]) in {"truncated", "damaged", "not a JPEG, PNG or WebP image"}


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg></svg>", b"<html>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image(data):
    assert reason(data) == "not a JPEG, PNG or WebP image"


@pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP", "ICO", "PPM", "AVIF"])
def test_formats_outside_the_list(form):
    assert reason(encoded(Image.new("RGB", (32, 32)), form)) == "not a JPEG, PNG or WebP image"


def test_animations_are_refused():
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (0, 250)]
    for form in ("WEBP", "PNG"):
        assert reason(encoded(frames[0], form, save_all=True, append_images=frames[1:])) == "animated"


def test_the_first_image_of_an_mpo_is_taken():
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (250, 0)]
    shown = decoded(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])).rgb
    assert shown[8, 8, 0] > 240


def test_bombs_are_refused_before_they_are_decoded():
    assert reason(encoded(Image.new("1", (12000, 12000)))) == "too many pixels"
    assert reason(_png_header(20000, 20000) + _chunk(b"IDAT", b"")) == "too many pixels"
    assert reason(encoded(Image.new("L", (1001, 1000)))) == "too many pixels"
    assert reason(encoded(Image.new("L", (10, 10))), Limits(50, 1000)) == "file too large"


def test_a_compressed_text_bomb_is_a_damaged_image():
    bomb = _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 70_000_000, 9))
    assert reason(_png_header(4, 4) + bomb) in {"damaged", "not a JPEG, PNG or WebP image"}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def test_the_fast_way_reads_pillows_pixels():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((401, 299))
    for options in ({"subsampling": 2}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}):
        data = encoded(image, "JPEG", **options)
        assert np.array_equal(decoded(data).rgb, np.asarray(Image.open(BytesIO(data))))


def test_compositing_rounds_like_pillow():
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    canvas = Image.new("RGB", (64, 64), (17, 130, 255))
    image = Image.fromarray(levels)
    canvas.paste(image, mask=image.getchannel("A"))
    assert np.array_equal(decoded(encoded(image)).on((17, 130, 255)), np.asarray(canvas))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_never_raise(form):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((60, 50))
    whole = encoded(image, form, exif=exif, icc_profile=profile)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 12)):
            # Most of a parser's decisions are in the first bytes.
            damaged[int(len(damaged) * rng.random() ** 3)] = rng.integers(256)
        result = decode(bytes(damaged), LIMITS)
        outcomes.add(result.reason if isinstance(result, Dropped) else "decoded")
    assert len(outcomes) > 1, outcomes
    assert "decoded" in outcomes or form == "PNG", "PNG has checksums, the others do not"


def test_no_flipped_bit_of_a_png_becomes_other_pixels():
    """Pillow alone decodes most of these to another image."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    file = BytesIO()
    image.save(file, "PNG", pnginfo=text_chunk())
    whole = file.getvalue()
    assert isinstance(decode(whole, LIMITS), Decoded)
    said = Counter[str]()
    for bit in np.random.default_rng(1).choice(8 * len(whole), 600, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        found = decode(bytes(damaged), LIMITS)
        assert isinstance(found, Dropped), bit
        said[found.reason] += 1
    assert said["damaged"] > 550


def text_chunk() -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "x" * 40)
    return info


def test_a_png_cut_within_its_last_checksum_is_truncated():
    file = BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    assert decode(file.getvalue()[:-14], LIMITS) == Dropped("truncated", "within chunk IDAT")
