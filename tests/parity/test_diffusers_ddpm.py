"""Our noising and targets against diffusers' DDPMScheduler, for every timestep.

DDPMScheduler because it is the one diffusers scheduler whose get_velocity is right under zero terminal SNR.
It computes its table in float32 (relative error up to 4e-5 where alpha is near 0), ours in float64.
"""

import pytest
import torch
from diffusers import DDPMScheduler

from terminus.diffusion.prediction import noised, velocity
from terminus.diffusion.schedule import NoiseSchedule

SCHEDULES = {
    False: NoiseSchedule.scaled_linear(),
    True: NoiseSchedule.scaled_linear().with_zero_terminal_snr(),
}
T = torch.arange(1000)
X0, EPSILON = torch.randn(2, 1000, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_tables_noising_and_velocity_agree_at_every_timestep(zero_terminal: bool):
    ours = SCHEDULES[zero_terminal]
    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_terminal,
        clip_sample=False,
    )
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, rtol=5e-5, atol=1e-6)
    assert (float(theirs.alphas_cumprod[-1]) == 0.0) is zero_terminal is ours.is_zero_terminal
    alpha, sigma = ours.at(T, X0.ndim)
    torch.testing.assert_close(noised(X0, EPSILON, alpha, sigma), theirs.add_noise(X0, EPSILON, T), rtol=0, atol=2e-5)
    expected = theirs.get_velocity(X0, EPSILON, T)
    torch.testing.assert_close(velocity(X0, EPSILON, alpha, sigma), expected, rtol=0, atol=2e-5)
