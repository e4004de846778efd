"""Energy and emissions of a run: measured where the hardware counted all of it, else estimated; it says which."""

from __future__ import annotations

import re
from dataclasses import dataclass

from terminus.card.documents import Document

WATTS_PER_CORE = 10.0
BOARD_WATTS = {"H200": 700, "H100 PCIe": 350, "H100": 700, "A100": 400, "L40S": 350, "RTX 4090": 450, "RTX 3090": 350}
"""Rated power of GPUs in watts by a part of their name, the first that fits."""
_GPU = re.compile(r"NVIDIA|GeForce|RTX|Radeon|Instinct")
COVERED = 0.98
"""Share of the training time that a measurement must cover: a kill loses half a minute of it."""


@dataclass(frozen=True)
class Energy:
    """A measurement, or else an estimate, with everything that went into it; None is what nobody knows."""

    hours: float | None
    """That the energy is of: of a measurement its own, of an estimate those in steps of the model."""
    measured: dict[str, float]
    """kWh by meter (NVML, RAPL) of a measurement that covers the whole run; else empty, and `kwh` is an estimate."""
    unmeasured: str | None
    """Why there is no measurement, as far as the run knows."""
    watts: float | None
    assumption: str
    kwh: float | None
    grid: float | None
    """Grams of CO2 per kWh, as the recipe states it."""
    grams: float | None

    @property
    def kind(self) -> str:
        """ "measured by NVML and RAPL" or "estimate"."""
        return f"measured by {' and '.join(self.measured)}" if self.measured else "estimate"


def energy_of(recipe: Document, facts: Document) -> Energy:
    """The measurement, if it covers the run; else the estimate."""
    grid = recipe.number("run.grid_co2")
    measured, hours, unmeasured = _measured(facts.at("energy"), facts.number("train_seconds"))
    estimated_hours, watts, assumption = _assumed(recipe, facts)
    # A measurement replaces the estimate whole: hours and kWh are of the same span.
    if measured:
        kwh = sum(measured.values())
    else:
        hours = estimated_hours
        kwh = None if hours is None or watts is None else hours * watts / 1000
    grams = None if kwh is None or grid is None else kwh * grid
    return Energy(hours, measured, unmeasured, watts, assumption, kwh, grid, grams)


def _measured(found: Document, trained: float | None) -> tuple[dict[str, float], float | None, str | None]:
    """kWh by meter, the hours that they cover, and why it is no measurement of this run if it is none."""
    joules = {meter: value for meter, one in found.items("joules") if isinstance(value := one.scalar(), int | float)}
    seconds = found.number("seconds")
    if not joules or not seconds or trained is None:
        return {}, None, found.text("missing")
    if seconds < COVERED * trained:
        covered = f"{seconds / 3600:.4g} of the {trained / 3600:.4g} hours in steps"
        reason = found.text("missing") or "the account of a session was lost"
        return {}, None, f"counters were read in {covered} alone: {reason}"
    return {meter: value / 3.6e6 for meter, value in joules.items()}, seconds / 3600, None


def _assumed(recipe: Document, facts: Document) -> tuple[float | None, float | None, str]:
    """Hours and watts of an estimate, and what is assumed."""
    seconds, hardware = facts.number("train_seconds"), facts.text("environment.hardware") or ""
    # Rated power all the time is the upper bound of what a board takes.
    board = _board_watts(hardware)
    if board is not None and recipe.text("run.device") != "cpu":
        seconds = facts.number("device_seconds") or seconds  # one board for each process
        watts, assumption = board, "the rated power of the board, all the time"
    else:
        watts, assumption = _cpu_watts(hardware, facts.number("environment.cpu_count"))
    return None if seconds is None else seconds / 3600, watts, assumption


def _board_watts(hardware: str) -> float | None:
    for name, watts in BOARD_WATTS.items():
        if name in hardware:
            return float(watts)
    return None


def _cpu_watts(hardware: str, cores: float | None) -> tuple[float | None, str]:
    """Power of the CPU cores, and how it was assumed; None where a GPU is there, whose part nobody knows."""
    if cores is None or _GPU.search(hardware) or _board_watts(hardware) is not None:
        return None, "the power of this hardware is not known"
    return WATTS_PER_CORE * cores, f"{WATTS_PER_CORE:.0f} W for each of {cores:.0f} CPU cores"
