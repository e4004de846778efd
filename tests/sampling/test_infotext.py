"""The text of A1111: what is written is what is read, and no text takes long."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terminus.conditioning import Size
from terminus.model.record import Schedule
from terminus.sampling import infotext
from terminus.sampling.generation_metadata import GenerationMetadata
from terminus.sampling.infotext import parameters

ORIGIN = GenerationMetadata(
    prompt="a red apple",
    negative="blurry",
    seed=7,
    steps=28,
    solver="dpmpp_2m",
    guidance=4.0,
    rescale=0.7,
    size=Size(height=32, width=16),
    precision="fp32",
    model="gamma-v2",
    model_hash="0123456789abcdef" * 4,
    schedule=Schedule(),
)
# Surrogates cannot be stored, "\r" is a line's end to some, and a text is stripped at its ends.
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=20)


@given(prompt=words, negative=words, model=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(max_examples=50, deadline=None)
def test_what_we_write_is_what_we_read(prompt: str, negative: str, model: str):
    generation = replace(ORIGIN, prompt=prompt, negative=negative, model=model.strip() or "m")
    said = infotext.parse_infotext(parameters(generation))
    assert said is not None
    assert (said.prompt, said.negative) == (prompt, negative)
    assert said.settings == infotext.infotext_settings(generation)


def test_json_that_others_write_as_it_is_stays_one_value():
    """stable-diffusion.cpp and Civitai; nothing inside it counts as a setting of its own."""
    line = (
        "Steps: 20, Seed: 42, Size: 512x512, Model: [SD] x, "
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1}], SDCPP: {"a": "}\\"", "b": "x, Seed: 9"}'
    )
    said = infotext.parse_infotext("a pig\n" + line)
    assert said is not None
    assert said.settings == {
        **{"Steps": "20", "Seed": "42", "Size": "512x512", "Model": "[SD] x"},
        "Civitai resources": '[{"type":"checkpoint","modelVersionId":1}]',
        "SDCPP": '{"a": "}\\"", "b": "x, Seed: 9"}',
    }
    open_ended = infotext.parse_infotext("a pig\nSteps: 20, Model: [x, Seed: 42, Size: 512x512")
    assert open_ended is not None
    assert (open_ended.settings["Model"], open_ended.settings["Seed"]) == ("[x", "42")


@pytest.mark.parametrize(
    "line",
    [
        "ab: [," * 10_000,
        "ab: [" * 12_000,
        'ab: {"' * 12_000,
        "ab: [], " * 8_000,
        'ab: ["' + '\\"' * 30_000,
        "a" * 60_000,
        "a " * 30_000,
        'ab:"' + "\\" * 60_000,
        'ab:"x' * 12_000,
        "ab: x, " * 8_000,
        " " * 60_000 + "x",
    ],
)
def test_no_line_takes_long(line: str):
    start = time.process_time()
    infotext.parse_infotext("p\n" + line)
    assert time.process_time() - start < 2
