"""The dashboard's drawing: lines of text from the facts of a run, for terminals of every width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite, nan

from rich.box import ROUNDED
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from terminus.training.monitor.history import Curve, History

_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_SIDE_BY_SIDE = 116
"""Columns from which timestep bands stand beside the curves."""
_LEAST_LINES = 22
"""Lines of a terminal from which there are bands at all, if they must stand below."""
_SILENT = 120.0
"""Seconds without a step that are worth a word: measuring, saving and previews are shorter."""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, for one drawing. Times are in seconds; None is what is not known."""

    folder: str
    images: int
    seen: int
    processes: int
    session_seconds: float | None
    left_seconds: float | None
    silent_seconds: float
    mfu: float | None
    """0..1, of what the devices' matrix products reach."""
    memory: str
    saved: int | None
    """Images seen at the newest checkpoint."""
    saved_seconds: float
    """Its age."""
    saves_every: int


def image(
    name: str, facts: RunStatus, history: History, size: ConsoleDimensions, ascii_only: bool = False
) -> RenderableType:
    """The view for a terminal of this size; it is never higher than 22 lines."""
    blocks = _ASCII if ascii_only else _BLOCKS
    inner = max(20, size.width - 4)
    # Two columns where there are bands and room for them.
    wide = size.width >= _SIDE_BY_SIDE and bool(history.bands)
    left = (inner * 11 // 20 if wide else inner) - 1
    # From top to bottom: how far the run is, its curves, and what else is to be said.
    body: list[RenderableType] = [_bar(facts, inner), _line(_progress(facts, history), inner), Text()]
    curves, below = [*_curves(facts, history, left, blocks)], [Text(), *_below(facts, history, left)]
    if wide:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Group(*curves, *below), Group(*_bands(history, inner - left - 3, 1, blocks)))
        body.append(grid)
    else:
        # One column, with the bands only if the terminal has lines for them.
        body += curves
        if history.bands and size.height >= _LEAST_LINES:
            body += [Text(), *_bands(history, inner, 2 if inner >= 56 else 1, blocks)]
        body += below
    title = _title(name, facts.folder, size.width)
    return Panel(Group(*body), title=title, title_align="left", box=ROUNDED, width=size.width)


def _title(name: str, folder: str, width: int) -> Text:
    """The run's name, and as much of its folder as there is room for."""
    title, place = (Text(without_controls(text), no_wrap=True, overflow="ellipsis") for text in (name, folder))
    title.stylize("bold")
    place.stylize("dim")
    # The folder gives way to the name, from its right end on.
    if len(title) + len(place) + 10 > width:
        place.right_crop(max(0, len(place) - max(0, width - len(title) - 10)))
    return Text.assemble(title, "  ", place)


def _bar(facts: RunStatus, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    done = facts.seen / facts.images if facts.images else 1.0
    bar = ProgressBar(total=max(1, facts.images), completed=facts.seen, width=width - 8, complete_style="cyan")
    grid.add_row(bar, Text(f"{100 * done:5.1f} %", "bold"))
    return grid


def _progress(facts: RunStatus, history: History) -> Iterator[str]:
    yield f"{facts.seen:,} of {facts.images:,} images"
    if facts.seen >= facts.images:
        yield "all seen"
    elif facts.left_seconds is not None:
        now = datetime.now()
        end = now + timedelta(seconds=min(facts.left_seconds, 1e9))
        yield f"{span(facts.left_seconds)} left, until {clock(now, end)}"
    if history.last:
        yield f"step {history.last.step:,}"
        yield f"epoch {history.last.epoch}"


def _line(parts: Iterable[str], width: int) -> Text:
    """As many of them as fit, the first at any rate."""
    said = ""
    for part in parts:
        if said and len(said) + 3 + len(part) > width:
            break
        said += f"   {part}" if said else part
    return Text(said, no_wrap=True, overflow="ellipsis")


def _lines(parts: Iterable[str], width: int, style: str) -> Iterator[Text]:
    """All of them, on as many lines as that takes."""
    said = ""
    for part in parts:
        if said and len(said) + 3 + len(part) > width:
            yield Text(said, style)
            said = ""
        said += f"   {part}" if said else part
    if said:
        yield Text(said, style)


def _curves(facts: RunStatus, history: History, width: int, blocks: str) -> Iterator[Text]:
    curves, last = history.curves, history.last
    if last is None:
        yield Text("waiting for the first step", "dim")
        return
    speed = f"median {number(history.speed)}"
    if facts.mfu is not None:
        speed += f", MFU {facts.mfu:.1%}"
    yield _entry("images/s", number(last.images_per_second), curves["images_per_second"], width, blocks, speed, 0.0)
    yield _entry("loss", f"{curves['loss'].now:.4f}", curves["loss"], width, blocks, f"last step {last.loss:.4f}")
    yield _entry("error", f"{curves['error'].now:.4f}", curves["error"], width, blocks, f"last step {last.error:.4f}")
    norm = f"last step {number(last.gradient_norm)}"
    gradient = curves["gradient_norm"]
    yield _entry("gradient", number(gradient.now), gradient, width, blocks, norm)
    yield _entry("rate", f"{last.learning_rate:.2e}", curves["learning_rate"], width, blocks, "")
    yield _validation(history, width, blocks)


def _validation(history: History, width: int, blocks: str) -> Text:
    before = (history.before or {}).get("all")
    best = history.best
    if best is None:
        said = "not measured yet" if before is None else f"not measured yet, before the first step {before:.4f}"
        return Text.assemble((f"{'validation':<11}", "dim"), said)
    errors = [error.get("all", nan) for _, error in history.validations]
    now = errors[-1]
    # Compared with the best if that was better, else with the start.
    note = f"before {before:.4f} ({100 * (now / before - 1):+.0f} %)" if before else ""
    if best[1] < now:
        note = f"best {best[1]:.4f}, before {before:.4f}" if before else f"best {best[1]:.4f}"
    # The curve begins with what was measured before the first step; a NaN is no point of it.
    curve = Curve()
    for value in (nan if before is None else before, *errors):
        curve.add(value)
    return _entry("validation", f"{now:.4f}", curve, width, blocks, note)


def _entry(label: str, value: str, curve: Curve, width: int, blocks: str, note: str, low: float | None = None) -> Text:
    """label, value, curve, note; the note's column is as wide on every line."""
    # Label, value and the spaces take 23 columns; the note and then the curve share the rest.
    room = max(0, min(32, width - 23) if width < 66 else 28)
    points = max(0, width - 23 - room)
    drawn = spark(curve.points(points), blocks, low) if points >= 8 else ""
    return Text.assemble(
        (f"{label:<11}", "dim"), (f"{value:>9}", "bold"), "  ", (f"{drawn:<{points}}", "cyan"), " ", (note, "dim"),
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip


def _bands(history: History, width: int, columns: int, blocks: str) -> Iterator[Text]:
    yield Text("error by timestep", "dim")
    latest = history.validations[-1][1] if history.validations else {}
    each = width // columns - (2 if columns > 1 else 0)
    # The held-out error stands beside its band only in one column that is wide enough.
    checked = columns == 1 and each >= 40 and bool(latest)
    names = sorted(history.bands)
    lines = -(-len(names) // columns)  # rounded up
    points = max(0, min(40, each - 17 - (20 if checked else 0)))
    for line in range(lines):
        text = Text(no_wrap=True, overflow="ellipsis")
        # Bands go down the columns, like words in a dictionary.
        for name in names[line::lines]:
            curve = history.bands[name]
            text.append(f"{name:<8} ", "dim").append(f"{curve.now:.4f}"[:6], "bold").append("  ")
            text.append(f"{spark(curve.points(points), blocks):<{points}}  ", "cyan")
            if checked:
                text.append(f"validation {latest[name]:.4f}" if name in latest else "", "dim")
        yield text


def _below(facts: RunStatus, history: History, width: int) -> Iterator[Text]:
    yield from _lines(_state(facts), width, "dim")
    yield from _lines(_alarms(facts, history), width, "yellow")


def _state(facts: RunStatus) -> Iterator[str]:
    if facts.saved is not None:
        yield f"saved at {facts.saved:,} images, {span(facts.saved_seconds)} ago"
    elif facts.saves_every:
        due = (facts.seen // facts.saves_every + 1) * facts.saves_every
        yield f"not saved yet, due at {min(due, facts.images):,} images"
    if facts.memory:
        yield f"memory up to {facts.memory}"
    if facts.processes > 1:
        yield f"{facts.processes} processes"
    if facts.session_seconds is not None:
        yield f"running for {span(facts.session_seconds)}"


def _alarms(facts: RunStatus, history: History) -> Iterator[str]:
    if history.last_left_out:
        last = history.last_left_out
        yield f"{plural(history.left_out, 'step')} left out, the last is {last.step:,} ({last.reason})"
    if history.undone:
        yield f"{plural(history.undone, 'step')} undone"
    if facts.silent_seconds > _SILENT and facts.seen < facts.images:
        yield f"no step for {span(facts.silent_seconds)}"


def plural(count: int, noun: str) -> str:
    """The number and its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def spark(values: Sequence[float], blocks: str = _BLOCKS, low: float | None = None) -> str:
    """One character for each value, from the lowest (or `low`) to the highest of the last seven eighths.

    So the first steps, whose loss is far above all others, do not press the rest of the curve flat.
    """
    if not values:
        return ""
    low, high = min(values) if low is None else low, max(values[len(values) // 8 :])
    top, scale = len(blocks) - 1, len(blocks) / (high - low) if high > low else 0.0
    return "".join(blocks[min(top, int((value - low) * scale)) if scale else 0] for value in values)


def number(value: float) -> str:
    """Three figures, as people write them."""
    if not isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3600} h"


def clock(now: datetime, then: datetime) -> str:
    """A moment in local time, with its date if that is another day."""
    if then.date() == now.date():
        return f"{then:%H:%M}"
    return f"{then:%d %b %H:%M}" if then.year == now.year else f"{then:%Y-%m-%d}"


def without_controls(text: str) -> str:
    """The text with a question mark for every character that a terminal could obey."""
    return "".join(char if char.isprintable() else "?" for char in text)
