"""How numbers look on the card, and the two phrases for those that do not exist."""

from __future__ import annotations

from markupsafe import Markup

from terminus.card.documents import Document

NOT_MEASURED = Markup("not measured")
NOT_STATED = Markup("not stated")


def count(value: float | None) -> Markup:
    """12800 is "12,800"."""
    return NOT_MEASURED if value is None else Markup(f"{round(value):,}")


def significant(value: float | None, digits: int = 4) -> Markup:
    """1e-05 is "1e-05", 0.30001 is "0.3"."""
    return NOT_MEASURED if value is None else Markup(f"{value:.{digits}g}")


def fixed(value: float | None, digits: int = 3) -> Markup:
    """0.5 is "0.500"."""
    return NOT_MEASURED if value is None else Markup(f"{value:.{digits}f}")


def size(value: float | None) -> Markup:
    """Bytes in decimal units: 12345678 is "12.3 MB"."""
    if value is None:
        return NOT_MEASURED
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return Markup(f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}")
        value /= 1000
    return Markup(f"{value:.1f} TB")


def duration(seconds: float | None) -> Markup:
    """3725 is "1 h 2 min"; 75 is "1 min 15 s"."""
    if seconds is None:
        return NOT_MEASURED
    whole = round(seconds)
    if whole >= 3600:
        return Markup(f"{whole // 3600} h {whole % 3600 // 60} min")
    return Markup(f"{whole // 60} min {whole % 60} s")


def mean(found: Document) -> Markup:
    """A `Mean` of metrics.json: "0.012 ± 0.004 (n 64, CI 0.011 to 0.013)"."""
    middle, spread, n = found.number("mean"), found.number("std"), found.number("n")
    if middle is None or spread is None or n is None:
        return NOT_MEASURED
    return Markup(f"{middle:.3f} ± {spread:.3f} (n {n:.0f}, {ci(found)})")


def ci(found: Document) -> Markup:
    """The 95 % interval of something in metrics.json."""
    ends = [end.scalar() for end in found.list("ci95")]
    if len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        return Markup("CI not measured")
    return Markup("CI {:.3f} to {:.3f}".format(*ends))
