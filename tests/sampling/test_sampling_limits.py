"""Names that are checked without torch are those that there are."""

from __future__ import annotations

from terminus.model import choices, record
from terminus.sampling import arguments, limits
from terminus.sampling.controls import KINDS
from terminus.sampling.grid import SPACINGS
from terminus.sampling.masks import FILLS
from terminus.sampling.metadata import FORMATS
from terminus.sampling.solvers import SOLVERS


def test_the_names_are_those_that_there_are():
    assert tuple(SOLVERS) == limits.SOLVER_NAMES
    assert tuple(SPACINGS) == limits.SPACING_NAMES
    assert tuple(FILLS) == limits.FILL_NAMES
    assert limits.CONTROL_KINDS == KINDS
    assert tuple(f".{name}" for name in arguments.IMAGE_FORMATS) == tuple(FORMATS)
    assert tuple(record.DECISIONS) == choices.DECISIONS
