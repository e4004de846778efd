"""The shipped model repaints a background as dark or light as it is asked to, whatever brightness it hides."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from terminus import Terminus
from terminus.data import emoji
from terminus.evaluation.luminance import luma

SUBJECTS = ("red apple", "pear", "soccer ball", "yellow heart")
SIDE, WITHIN = 64, 0.08


@pytest.fixture(scope="module")
def nano() -> Terminus:
    return Terminus.load("nano", device="cpu")


def subject(name: str) -> emoji.Emoji:
    return next(one for one in emoji.drawings() if one.style == "3d" and one.name == name)


def cut_out(drawing: emoji.Emoji) -> Image.Image:
    with Image.open(io.BytesIO(emoji.rgba(drawing))) as image:
        return image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(("asked", "hidden", "target"), [("black", "white", 0.0), ("white", "black", 1.0)])
def test_the_masked_part_is_as_bright_as_it_is_asked_to_be(nano: Terminus, asked: str, hidden: str, target: float):
    brightness: list[float] = []
    for name in SUBJECTS:
        drawing = subject(name)
        front = cut_out(drawing)
        start = Image.alpha_composite(Image.new("RGBA", front.size, emoji.BACKGROUNDS[hidden]), front).convert("RGB")
        inside = front.getchannel("A").point(lambda alpha: 255 if alpha > 200 else 0).filter(ImageFilter.MinFilter(5))
        mask = inside.point(lambda value: 255 - value)
        painted = nano.inpaint(emoji.emoji_caption(drawing, asked), start, mask, count=2, steps=20)
        kept, background = np.asarray(mask) == 0, np.asarray(front.getchannel("A")) == 0
        for one in painted:
            assert np.array_equal(np.asarray(one)[kept], np.asarray(start)[kept])
            brightness.append(float(luma(np.asarray(one)[None])[0][background].mean()))
    assert abs(np.mean(brightness) - target) <= WITHIN, brightness
    print(asked, np.round(brightness, 3))
