"""Text to image on a real, tiny model: what an image depends on, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from terminus import Terminus
from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.model.components import Components, load_components
from terminus.model.record import Schedule
from terminus.sampling.settings import Settings, size_multiple
from terminus.sampling.solvers import SOLVERS
from terminus.sampling.tasks import text2img, to_bytes


@pytest.fixture(scope="module")
def components(random_nano: Path) -> Components:
    return load_components(random_nano)


def with_schedule(components: Components, **changes: object) -> Components:
    schedule = replace(components.record.schedule, **changes)
    return replace(components, record=replace(components.record, schedule=schedule))


def draw(
    components: Components, prompts: list[str], seeds: list[int], negative: str = "", **settings: object
) -> torch.Tensor:
    """The last latents."""
    how = Settings(**{"steps": 4} | settings)
    *_, last = text2img(components, prompts, seeds, how, negative)
    return last.x


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_image_is_the_same_alone_and_in_any_batch(components: Components, solver: str):
    prompts, seeds = ["a red apple", "", "a dog", "a red apple"], [3, 4, 5, 6]
    together = draw(components, prompts, seeds, solver=solver)
    for row in range(4):
        alone = draw(components, [prompts[row]], [seeds[row]], solver=solver)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_prompt_and_seed_each_change_the_image(components: Components):
    images = draw(components, ["a red apple", "a red apple", "a dog"], [0, 1, 0])
    assert not torch.allclose(images[0], images[1], atol=1e-2)
    assert not torch.allclose(images[0], images[2], atol=1e-3)


def test_guidance_1_is_the_prompt_alone_for_half_the_work(components: Components):
    rows: list[int] = []
    handle = components.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    plain = draw(components, ["a dog"], [0], negative="a cat", guidance=1.0)
    assert rows == [1] * 4
    # the limit of the guided formula, where the unconditional pass cancels
    guided = draw(components, ["a dog"], [0], negative="a cat", guidance=1.0 + 1e-6, rescale=0.0)
    handle.remove()
    assert rows == [1] * 4 + [2] * 4
    torch.testing.assert_close(plain, guided, rtol=1e-3, atol=1e-3)


def test_the_negative_prompt_acts_through_guidance(components: Components):
    without, against = (draw(components, ["a dog"], [0], negative=text) for text in ("", "a cat"))
    assert not torch.allclose(without, against, atol=1e-4)


def test_a_negative_equal_to_the_prompt_is_no_guidance(components: Components):
    same = draw(components, ["a dog"], [0], negative="a dog", guidance=5.0)
    torch.testing.assert_close(same, draw(components, ["a dog"], [0], guidance=1.0), rtol=1e-3, atol=1e-3)


def test_what_the_network_predicts_is_read_from_the_record(components: Components):
    """One network read both ways on one leaky schedule: the two images are each finite, and not the same."""
    leaky = with_schedule(components, zero_terminal=False)
    epsilon = with_schedule(components, zero_terminal=False, prediction="epsilon")
    as_velocity, as_epsilon = (draw(one, ["a dog"], [0]) for one in (leaky, epsilon))
    assert bool(as_velocity.isfinite().all())
    assert bool(as_epsilon.isfinite().all())
    assert not torch.allclose(as_velocity, as_epsilon, atol=1e-2)


def test_epsilon_on_a_zero_terminal_schedule_is_refused(components: Components):
    with pytest.raises(UserError, match="epsilon on a zero-terminal-SNR schedule"):
        draw(with_schedule(components, prediction="epsilon"), ["a dog"], [0])


@pytest.mark.parametrize(
    ("settings", "zero_terminal", "expected"),
    [
        (Settings(), True, 0.7),
        (Settings(), False, 0.0),
        (Settings(rescale=0.3), True, 0.3),
        (Settings(rescale=0.3), False, 0.3),
        (Settings(guidance=1.0), True, 0.0),
    ],
)
def test_the_default_rescale_follows_the_schedule(components: Components, settings, zero_terminal, expected):
    assert settings.rescale_for(with_schedule(components, zero_terminal=zero_terminal)) == expected


def test_sizes_are_height_and_width(components: Components):
    x = draw(components, ["a dog"], [0], size=Size(height=16, width=48))
    assert x.shape == (1, 4, 4, 12)
    assert to_bytes(components, x).shape == (1, 16, 48, 3)


def test_the_size_reaches_the_network(components: Components):
    """Micro-conditioning: (original, crop, target), height before width."""
    seen: list[torch.Tensor] = []

    def look(_: object, __: object, named: dict[str, dict[str, torch.Tensor]]) -> None:
        seen.append(named["added_cond_kwargs"]["time_ids"])

    handle = components.unet.register_forward_pre_hook(look, with_kwargs=True)
    draw(components, ["a dog"], [0], size=Size(height=16, width=48))
    handle.remove()
    assert seen[0].tolist() == [[16, 48, 0, 0, 16, 48]] * 2


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((40, 32), "32x32"), ((32, 0), "16x32"), ((32, -16), "16x32"), ((32, 144), "128x32"), ((10**9, 32), "32x128")],
)
def test_a_size_the_model_cannot_draw_is_answered_with_the_nearest(components: Components, size, nearest: str):
    assert size_multiple(components) == 16
    with pytest.raises(UserError, match=f"The nearest is {nearest}"):
        draw(components, ["a dog"], [0], size=Size(*size))


def test_decoding_in_parts_is_decoding_at_once(components: Components, monkeypatch: pytest.MonkeyPatch):
    x = draw(components, ["a dog"] * 3, [0, 1, 2])
    whole = to_bytes(components, x).int()
    monkeypatch.setattr("terminus.sampling.tasks._DECODED_PIXELS", 1)
    assert (to_bytes(components, x).int() - whole).abs().max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dpmpp_2n"}, "Did you mean `dpmpp_2m`"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": -1}, "-1 sampling steps"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"guidance": -1.0}, "guidance -1"),
        ({"rescale": 1.5}, "rescale 1.5"),
        ({"rescale": float("nan")}, "rescale nan"),
    ],
)
def test_settings_that_no_model_has(settings: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        Settings(**settings)


def test_more_steps_than_timesteps(components: Components):
    with pytest.raises(UserError, match="1001 sampling steps"):
        draw(components, ["a dog"], [0], steps=1001)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(components: Components, seed: int):
    with pytest.raises(UserError, match=f"seed {seed}"):
        draw(components, ["a dog"], [seed])


def test_the_largest_seed_and_an_empty_prompt_draw(components: Components):
    assert draw(components, [""], [2**63 - 1]).isfinite().all()


def test_bytes_that_are_not_text_are_refused(components: Components):
    with pytest.raises(UserError, match="not valid text"):
        draw(components, ["a dog \udcff"], [0])


def test_a_model_of_another_task_is_refused(components: Components):
    unet = type(components.unet).from_config({**components.unet.config, "in_channels": 9})
    with pytest.raises(UserError, match="reads 9 channels"):
        draw(replace(components, unet=unet), ["a dog"], [0])


def test_the_record_of_the_fixture_is_what_these_tests_assume(components: Components):
    assert components.record.schedule == Schedule(prediction="velocity", zero_terminal=True)
    assert components.native_pixels == 32


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_length_of_a_neighbours_prompt_changes_nothing(random_nano: Path, guidance: float):
    model = Terminus.load(random_nano, device="cpu")
    prompts, negative = ["a dog", "a dog BREAK a cat", "a dog"], "a BREAK b BREAK c"
    together = model.text2img(prompts, negative, steps=2, guidance=guidance)
    for prompt, one in zip(prompts, together, strict=True):
        (alone,) = model.text2img(prompt, negative, steps=2, guidance=guidance)
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(one)).max() <= 1
