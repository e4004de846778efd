"""How numbers look on the card: what was not measured says so, and so does what was not stated."""

from __future__ import annotations

from markupsafe import Markup

from terminus.card.documents import Document
from terminus.card.escape import NOT_STATED

NOT_MEASURED = Markup("not measured")


def format_count(value: float | None) -> Markup:
    """12800 is "12,800"."""
    return NOT_MEASURED if value is None else Markup(f"{round(value):,}")


def significant(value: float | None, digits: int = 4) -> Markup:
    """1e-05 is "1e-05", 0.30001 is "0.3"."""
    return NOT_MEASURED if value is None else Markup(f"{value:.{digits}g}")


def stated(value: float | None) -> Markup:
    """A setting: as `significant`, but nobody measures it."""
    return NOT_STATED if value is None else significant(value, 5)


def stated_count(value: float | None) -> Markup:
    """A setting that counts something."""
    return NOT_STATED if value is None else format_count(value)


def fixed(value: float | None, digits: int = 3) -> Markup:
    """0.5 is "0.500"."""
    return NOT_MEASURED if value is None else Markup(f"{value:.{digits}f}")


def format_bytes(value: float | None) -> Markup:
    """Bytes in decimal units: 12345678 is "12.3 MB"."""
    if value is None:
        return NOT_MEASURED
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return Markup(f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}")
        value /= 1000
    return Markup(f"{value:.1f} TB")


def duration(seconds: float | None) -> Markup:
    """3725 is "1 h 2 min"; 75 is "1 min 15 s"; 0.51 is "0.51 s"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.5:
        return Markup(f"{seconds:.3g} s")
    whole = round(seconds)
    if whole >= 3600:
        return Markup(f"{whole // 3600} h {whole % 3600 // 60} min")
    return Markup(f"{whole // 60} min {whole % 60} s")


def mean(found: Document) -> Markup:
    """A `Mean` of metrics.json: "0.012 ± 0.004 (n 64, CI 0.011 to 0.013)"; one image has no spread."""
    middle, spread, n = found.number("mean"), found.number("std"), found.number("n")
    if middle is None or spread is None or n is None:
        return NOT_MEASURED
    if n < 2:
        return Markup(f"{_unsigned_zero(middle):.3f} (n {n:.0f})")
    return Markup(f"{_unsigned_zero(middle):.3f} ± {spread:.3f} (n {n:.0f}, {ci(found)})")


def distance(found: Document) -> Markup:
    """A histogram distance of metrics.json: "0.0423 (n 64, CI 0.031 to 0.052)"."""
    value, n = found.number("wasserstein"), found.number("images")
    if value is None or n is None:
        return NOT_MEASURED
    return Markup(f"{value:.4f} (n {n:.0f}, {ci(found)})")


def ci(found: Document) -> Markup:
    """The 95 % interval of something in metrics.json."""
    ends = [end.tree for end in found.list("ci95")]
    low, high = ends if len(ends) == 2 else (None, None)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return Markup("CI not measured")
    return Markup(f"CI {_unsigned_zero(low):.3f} to {_unsigned_zero(high):.3f}")


def share(found: Document) -> Markup:
    """A `Rate` of metrics.json: "0.250 (8 of 32, CI 0.132 to 0.421)"."""
    value, count, n = found.number("share"), found.number("count"), found.number("n")
    if value is None or count is None or n is None:
        return NOT_MEASURED
    return Markup(f"{value:.3f} ({count:.0f} of {n:.0f}, {ci(found)})")


def _unsigned_zero(value: float) -> float:
    """No "-0.000"."""
    return round(value, 3) + 0.0
