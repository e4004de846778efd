"""What one request and all of them together may ask for: one table, checked before anything is drawn.

Single numbers have bounds, and so have their products: an image of 2048 pixels, 150 steps and a count of 64 are each
usual, and together they would hold a machine for a day.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from terminus.errors import UserError


@dataclass(frozen=True)
class ServeLimits:
    """Upper bounds, in the units of their names."""

    side: int = 8192
    """Pixels; of the image that is asked for."""
    pixels: int = 2048 * 2048
    """Of one image."""
    count: int = 64
    """Images of one job."""
    steps: int = 200
    work: int = 64 * 1024 * 1024 * 200
    """Pixels times images times steps, of one job."""
    waiting: int = 200
    """Jobs in the queue, of everybody."""
    waiting_each: int = 100
    """Jobs in the queue of one user, where there are several."""
    prompt: int = 20_000
    """Characters."""
    adapters: int = 8
    controls: int = 4
    cells: int = 100
    """Images of a grid."""
    body: int = 1 << 20
    """Bytes of a request."""
    upload: int = 48 << 20
    """Bytes of a request that carries images."""
    upload_pixels: int = 64 * 1024 * 1024
    enlarged: int = 8192 * 8192
    """Pixels of an enlarged image."""

    def public(self) -> dict[str, int]:
        """The table, for clients."""
        return asdict(self)


LIMITS = ServeLimits()


def check_work(width: int, height: int, steps: int, count: int, limits: ServeLimits = LIMITS) -> None:
    """UserError for more pixels, or more work in all, than one job may ask for."""
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise UserError(
            f"An image of {width}x{height} pixels",
            rule=f"An image has at most {limits.pixels:,} pixels, and {limits.side:,} a side",
            fix="Draw it smaller, then enlarge it",
        )
    work = width * height * steps * count
    if work > limits.work:
        raise UserError(
            f"{count} images of {width}x{height} in {steps} steps",
            rule=f"A job is at most {limits.work:,} pixels times images times steps; this is {work:,}",
            fix="Ask for fewer images at once",
        )
