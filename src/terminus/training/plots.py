"""The curves of a run as one page without scripts, redrawn from `log.jsonl` alone.

Rows that were undone by going back to a checkpoint are on no curve; where they were, the page is shaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from terminus.errors import UserError
from terminus.training.disk import write_whole
from terminus.training.history import resample, rows
from terminus.training.journal import Row

WIDTH, HEIGHT = 640, 200
"""Of a plot, in its own units."""
_POINTS = 640

Point = tuple[float, float]
"""(Images seen, value)."""


@dataclass(frozen=True)
class Line:
    """One curve: its name, and its points as SVG writes them."""

    name: str
    path: str


@dataclass(frozen=True)
class Plot:
    """Several curves on the same axes."""

    title: str
    lines: tuple[Line, ...]
    low: float
    high: float


def write_plots(folder: Path) -> Path:
    """Writes `plots.html` into a run's folder and returns its path; UserError if its log has no rows."""
    every = list(rows(folder / "log.jsonl"))
    kept = [row for row, undone in every if not undone]
    if not kept:
        raise UserError("This log has no rows", where=str(folder / "log.jsonl"), rule="A plot is drawn from its rows")
    end = every[-1][0].images_seen
    spans = _spans([row.images_seen for row, undone in every if undone], _batch(every[0][0]))
    left_out = [row.images_seen for row in kept if row.reason]
    environment = Environment(
        loader=PackageLoader("terminus", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("plots.html.j2").render(
        name=folder.resolve().name, plots=[plot for plot in _plots(kept, end) if plot.lines], last=kept[-1],
        steps=len(every), undone=len(every) - len(kept), left_out=[_x(one, end) for one in left_out],
        spans=[(_x(start, end), _x(stop, end) - _x(start, end)) for start, stop in spans],
        end=end, width=WIDTH, height=HEIGHT,
    )  # fmt: skip
    path = folder / "plots.html"
    write_whole(path, page)
    return path


def _plots(kept: Sequence[Row], end: int) -> Iterable[Plot]:
    def of(value: Callable[[Row], float | None], smooth: bool = True) -> list[Point]:
        points = [(row.images_seen, value(row)) for row in kept]
        finite = [(float(x), y) for x, y in points if y is not None and isfinite(y)]
        return _fewer(finite) if smooth else finite

    bands = sorted({band for row in kept for band in row.bands})
    measured = sorted({band for row in kept for band in row.validation or {}}, key=lambda band: (band != "all", band))
    yield _plot("loss and plain error", {"loss": of(lambda row: row.loss), "error": of(lambda row: row.error)}, end)
    by_band = {band: of(lambda row, band=band: row.bands.get(band)) for band in bands}
    yield _plot("plain error by timestep", by_band, end)
    held_out = {band: of(lambda row, band=band: (row.validation or {}).get(band), smooth=False) for band in measured}
    yield _plot("validation error", held_out, end)
    yield _plot("learning rate", {"learning rate": of(lambda row: row.learning_rate)}, end, zero=True)
    yield _plot("gradient norm", {"gradient norm": of(lambda row: row.gradient_norm)}, end)
    yield _plot("images per second", {"images per second": of(lambda row: row.images_per_second)}, end, zero=True)


def _plot(title: str, series: dict[str, list[Point]], end: int, zero: bool = False) -> Plot:
    """On a logarithmic axis, unless it begins at zero or a value is not above it."""
    drawn = {name: points for name, points in series.items() if points}
    values = [y for points in drawn.values() for _, y in points]
    if not values:
        return Plot(title, (), 0.0, 0.0)
    low, high = 0.0 if zero else min(values), max(values)
    scale = log10 if low > 0 else float
    bottom, size = scale(low), (scale(high) - scale(low)) or 1.0

    def path(points: Iterable[Point]) -> str:
        return " ".join(f"{_x(x, end):.1f},{HEIGHT * (1 - (scale(y) - bottom) / size):.1f}" for x, y in points)

    return Plot(title, tuple(Line(name, path(points)) for name, points in drawn.items()), low, high)


def _fewer(points: Sequence[Point]) -> list[Point]:
    """Means of neighbours, as many as can be seen."""
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    return list(zip(resample(xs, _POINTS), resample(ys, _POINTS), strict=True))


def _x(images: float | int, end: int) -> float:
    return round(WIDTH * images / max(1, end), 1)


def _batch(first: Row) -> int:
    return max(1, first.images_seen // max(1, first.step))


def _spans(images: Sequence[int], batch: int) -> list[tuple[int, int]]:
    """Runs of steps that follow each other, as (images seen before, images seen after)."""
    spans: list[tuple[int, int]] = []
    for seen in images:
        if spans and spans[-1][1] == seen - batch:
            spans[-1] = (spans[-1][0], seen)
        else:
            spans.append((seen - batch, seen))
    return spans
