"""The table at the start of a run shows the difference that the form of min-SNR makes at the terminal step."""

from __future__ import annotations

import pytest

from terminus.diffusion.objective import Objective
from terminus.diffusion.schedule import NoiseSchedule
from terminus.diffusion.weighting import MinSnrForm, min_snr
from terminus.training.monitor.weight_table import weight_table


@pytest.mark.parametrize(
    ("form", "share", "terminal"), [("augmented", "10.95 %", "weighs 1"), ("paper", "0.03 %", "weighs 0")]
)
def test_the_last_band_and_the_terminal_step(form: MinSnrForm, share: str, terminal: str):
    schedule = NoiseSchedule.scaled_linear().with_zero_terminal_snr()
    lines = weight_table(Objective(schedule, min_snr(schedule.snr, form=form)))
    assert len(lines) == 12
    assert lines[-2].startswith("  900-999")
    assert share in lines[-2]
    assert lines[-1].endswith(terminal)
