from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from terminus.data import duplicates
from terminus.data.duplicates import HASH_DISTANCE, HashIndex, NearDuplicates, Twin, scratch
from terminus.data.filters import measure_image


def image(seed: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


def test_the_index_finds_exactly_what_a_comparison_with_all_finds():
    generator = np.random.default_rng(0)
    centres = [int(value) for value in generator.integers(0, 2**64, 40, dtype=np.uint64)]
    hashes = [0, 2**64 - 1, *centres]
    for centre in centres:
        for distance in range(1, 6):
            bits = generator.choice(64, distance, replace=False)
            hashes.append(centre ^ sum(1 << int(bit) for bit in bits))
    index = HashIndex(scratch(), "test")
    for row, value in enumerate(hashes):
        index.add(f"{value:016x}", row)
    found = 0
    for value in hashes:
        near = [row for row, other in enumerate(hashes) if (value ^ other).bit_count() <= HASH_DISTANCE]
        assert index.near(f"{value:016x}") == near
        found += len(near)
    assert found > 2 * len(hashes), "each has neighbours to be found"


def test_every_flip_of_three_bits_is_found():
    index = HashIndex(scratch(), "test")
    index.add("0123456789abcdef", 7)
    value = 0x0123456789ABCDEF
    for first in range(64):
        for second in range(first + 1, 64, 5):
            for third in range(second + 1, 64, 7):
                flipped = value ^ (1 << first | 1 << second | 1 << third)
                assert index.near(f"{flipped:016x}") == [7]


def test_plain_images_are_compared_with_a_bounded_number_and_that_is_counted(monkeypatch: pytest.MonkeyPatch):
    index = HashIndex(scratch(), "test", longest=5)
    for row in range(20):
        assert len(index.near("0" * 16)) == min(row, 5)
        assert index.crowded == max(0, row - 5)
        index.add("0" * 16, row)
    assert index.near("0" * 16) == [0, 1, 2, 3, 4]
    whole = HashIndex(scratch(), "whole")
    for row in range(20):
        whole.add("0" * 16, row)
    assert whole.near("0" * 16) == list(range(20))
    assert whole.crowded == 0
    monkeypatch.setattr(duplicates, "LONGEST", 2)
    known = NearDuplicates()
    for number in range(4):
        # Of one shape in other colours: no duplicates, but comparisons.
        colors = bytes([60 * number]) * 192
        assert known.find("0" * 16, colors) is None
        known.add(Twin("", ""), "0" * 16, colors)
    assert known.hashes.crowded == 1


def test_near_duplicates_are_found_in_shape_and_colour():
    known = NearDuplicates()
    for seed in range(50):
        measures = measure_image(image(seed))
        assert known.find(measures.dhash, measures.thumbprint) is None
        known.add(Twin(f"{seed:064x}", str(seed)), measures.dhash, measures.thumbprint)
    for seed in range(50):
        copy = measure_image(image(seed).resize((150, 120), Image.Resampling.LANCZOS))
        assert known.find(copy.dhash, copy.thumbprint) == Twin(f"{seed:064x}", str(seed))


def test_the_same_drawing_on_another_background_is_no_duplicate():
    known = NearDuplicates()
    drawing = Image.new("RGBA", (128, 128))
    drawing.paste(image(0, (60, 60)), (34, 34))
    for color in ((255, 255, 255), (0, 0, 0), (200, 30, 30), (30, 30, 200)):
        canvas = Image.new("RGB", (128, 128), color)
        canvas.paste(drawing, mask=drawing.getchannel("A"))
        measures = measure_image(canvas)
        assert known.find(measures.dhash, measures.thumbprint) is None
        known.add(Twin("", str(color)), measures.dhash, measures.thumbprint)
