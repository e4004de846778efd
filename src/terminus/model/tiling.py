"""Images larger than memory pass the autoencoder in overlapping tiles.

Each tile by itself would be normalised by its own contrast: a tile of plain black would come out grey next to one of
detail. So every group norm takes the statistics of the whole image: the tiles pass twice, first only to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from terminus import runtime

Place = tuple[slice, slice]


@dataclass(frozen=True)
class Tiling:
    """All in pixels. Images of more than `whole` pixels pass in tiles of `side` x `side`, which share `overlap`."""

    whole: int = 4 * 2**20
    side: int = 1024
    overlap: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.side:
            raise ValueError(f"an overlap of {self.overlap} in tiles of {self.side}")


def in_tiles(
    run: Callable[[Tensor], Tensor],
    norms: Sequence[nn.GroupNorm],
    x: Float[Tensor, "batch channels height width"],
    tile: int,
    overlap: int,
    scale: float,
) -> Float[Tensor, "batch outputs taller wider"]:
    """The result of `run` on x, tile by tile. `tile` and `overlap` are in x; the result is `scale` times as large."""
    height, width = x.shape[-2:]
    tall, wide = min(tile, height), min(tile, width)
    # First pass: what each norm reads of the whole image. Tiles that meet suffice for that.
    with _measuring(norms) as sums:
        for place in _places(height, width, tall, wide, 0):
            run(x[(..., *place)])
    # Second pass: all tiles normalised alike, fading into one another where they overlap.
    slopes = [slope(round(side * scale), round(overlap * scale)) for side in (tall, wide)]
    weights = runtime.sent(slopes[0][:, None] * slopes[1][None, :], x.device)
    total, covered = torch.empty(0), weights.new_zeros(1, 1, round(height * scale), round(width * scale))
    with _normalised_by(sums):
        for place in _places(height, width, tall, wide, overlap):
            made = run(x[(..., *place)]).to(torch.float32)
            if not total.numel():
                total = made.new_zeros(*made.shape[:2], *covered.shape[2:])
            target = (..., *(slice(round(one.start * scale), round(one.stop * scale)) for one in place))
            total[target] += made * weights
            covered[target] += weights
    return total.div_(covered)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """The positions where tiles begin so that they cover `length`, evenly spread, neighbours sharing `overlap` or
    more."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def slope(length: int, overlap: int) -> Float[Tensor, " length"]:
    """Weights along one side of a tile: up over the overlap, 1, and down again."""
    from_edge = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 1
    return (from_edge / (overlap + 1)).clamp(max=1.0)


def _places(height: int, width: int, tall: int, wide: int, overlap: int) -> list[Place]:
    corners = product(starts(height, tall, overlap), starts(width, wide, overlap))
    return [(slice(top, top + tall), slice(left, left + wide)) for top, left in corners]


@dataclass
class _Sums:
    """Mean and mean square of all tiles, per image and group, in float32."""

    mean: Tensor
    square: Tensor
    tiles: int


@contextmanager
def _measuring(norms: Sequence[nn.GroupNorm]) -> Generator[dict[nn.GroupNorm, _Sums]]:
    """Writes down what each norm reads."""
    sums: dict[nn.GroupNorm, _Sums] = {}

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.GroupNorm)
        values = inputs[0].to(torch.float32).reshape(len(inputs[0]), norm.num_groups, -1)
        mean, square = values.mean(-1), values.square().mean(-1)
        known = sums.setdefault(norm, _Sums(torch.zeros_like(mean), torch.zeros_like(square), 0))
        known.mean += mean
        known.square += square
        known.tiles += 1

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _normalised_by(sums: dict[nn.GroupNorm, _Sums]) -> Generator[None]:
    """Group norms with these statistics in place of those of what they read: one product and sum per channel."""
    for norm, known in sums.items():
        mean = known.mean / known.tiles
        # Variance = mean square - squared mean.
        deviation = (known.square / known.tiles - mean.square() + norm.eps).sqrt()
        each = norm.num_channels // norm.num_groups
        factor = norm.weight / deviation.repeat_interleave(each, dim=1)
        offset = norm.bias - mean.repeat_interleave(each, dim=1) * factor
        setattr(norm, "forward", _affine(factor, offset))  # noqa: B010 - pyright: a method is no attribute
    try:
        yield
    finally:
        for norm in sums:
            del norm.forward  # the class's own is found again


def _affine(factor: Tensor, offset: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        shape = (*factor.shape, *(1,) * (x.dim() - 2))
        return torch.addcmul(offset.reshape(shape).to(x.dtype), x, factor.reshape(shape).to(x.dtype))

    return forward
