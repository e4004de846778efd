"""What becomes of a finished image before it leaves the worker: looked at, encoded, signed."""

from __future__ import annotations

import io
import json

import torch
from PIL import Image

from terminus.sampling.files import read_file
from terminus.sampling.metadata import encode_image, source_type_of
from terminus.sampling.provenance import Identity, signed
from terminus.sampling.reading import OURS, PARAMETERS
from terminus.sampling.settings import ImageRequest
from terminus.serving import orders
from terminus.serving.safety_filter import SafetyFilter, placeholder
from terminus.serving.worker_setup import WorkerSetup

_PREVIEW_SIDE, _THUMBNAIL_SIDE = 512, 320


class Finisher:
    """The last station of every image of one worker; UserError at the start for a classifier or a key that is none."""

    def __init__(self, setup: WorkerSetup, device: str) -> None:
        self._filter = None if setup.safety is None else SafetyFilter(setup.safety, torch.device(device))
        self._signer = None if setup.signer is None else Identity.load(*setup.signer)

    @property
    def shows_previews(self) -> bool:
        """Not where a filter decides: before the last step nobody knows what it will say."""
        return self._filter is None

    def drawn(
        self, order: orders.DrawOrder, number: int, request: ImageRequest, image: Image.Image, gap: str | None = None
    ) -> orders.Drawn:
        """The news of a finished image; `gap` is its difference from the one that it draws once more."""
        why = None if self._filter is None else self._filter.look(image)
        if why is None:
            png, said = self._encoded(order, image), image.info
            metadata, parameters = said.get(OURS, ""), said.get(PARAMETERS, "")
        else:  # of the image itself nothing is kept
            png, metadata, parameters = placeholder(image.size, why), json.dumps(why.record()), why.sentence
            image = Image.open(io.BytesIO(png), formats=("PNG",))
        thumbnail = _webp(_shrunk(image, _THUMBNAIL_SIDE), 80)
        return orders.Drawn(
            order.job, number, request.seed, image.width, image.height, png, thumbnail, str(metadata), str(parameters),
            gap,
        )  # fmt: skip

    def _encoded(self, order: orders.DrawOrder, image: Image.Image) -> bytes:
        """The file of `terminus sample`, with content credentials where somebody signs."""
        png = encode_image(image, "PNG")
        if self._signer is None:
            return png
        parent = None if order.image is None else read_file(order.image)
        return signed(png, self._signer, source_type_of(image), parent)


def preview(image: Image.Image) -> bytes:
    """A small WebP of an image that is still being drawn."""
    return _webp(_shrunk(image, _PREVIEW_SIDE), 70)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _webp(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    plain = Image.frombytes(image.mode, image.size, image.tobytes())  # without what the image says of itself
    plain.save(file, "WEBP", quality=quality, method=0)
    return file.getvalue()
