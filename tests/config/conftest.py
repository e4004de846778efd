"""A small schema with one of everything that recipes use, and a way to read text with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pytest
from pydantic import Field, model_validator

from terminus.config.base import Config
from terminus.config.load import Loaded, load


class Constant(Config):
    kind: Literal["constant"] = "constant"


class MinSnr(Config):
    kind: Literal["min_snr"] = "min_snr"
    gamma: float = 5.0
    """Where the weight is cut off."""

    form: Literal["augmented", "paper"] = "augmented"
    """Which of the two formulas."""


class Source(Config):
    path: Path
    """A folder of images."""

    weight: float = 1.0
    """Share of the mix."""


class Size(NamedTuple):
    height: int
    width: int


class Training(Config):
    seed: int = 0
    """The root of everything random."""

    images: int | Literal["all"] = "all"
    """When to stop."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""

    compile: bool = False
    """Compile the network."""

    @model_validator(mode="after")
    def _betas_in_order(self) -> Training:
        if self.betas[0] > self.betas[1]:
            raise ValueError("the first beta is not above the second")
        return self


class Recipe(Config):
    name: str
    """What the model is called."""

    weighting: Annotated[Constant | MinSnr, Field(discriminator="kind")] = MinSnr()
    sources: tuple[Source, ...] = ()
    training: Training = Training()
    size: Size = Size(64, 64)
    """Height and width in pixels."""

    anchor: Source | None = None
    columns: dict[str, float] = Field(default_factory=dict)
    """Thresholds by column."""


Read = Callable[..., Loaded[Recipe]]


@pytest.fixture
def schema() -> type[Recipe]:
    return Recipe


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """`read(text, *overrides)`: the text as `r.yaml` in an empty folder, loaded with the schema above."""
    monkeypatch.chdir(tmp_path)

    def _read(text: str, *overrides: str) -> Loaded[Recipe]:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return load("r.yaml", Recipe, overrides)

    return _read
