"""What a recipe means: types, extends, and text that loads again to the same settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from terminus.config.base import Config
from terminus.config.load import dump, load
from terminus.errors import UserError

EVERYTHING = """\
name: "no"
weighting: {kind: min_snr, gamma: 3}
sources:
  - path: a/b
  - {path: c, weight: 4e-7}
training:
  seed: 0x10
  images: 100
  betas: [0.5, 1]
size: [3, 4]
columns: {punsafe: .5}
"""


def test_each_value_has_the_type_its_field_says(read, schema):
    value = read(EVERYTHING).value
    assert isinstance(value, schema)
    assert value.name == "no"
    assert (value.training.seed, value.training.images, value.training.betas) == (16, 100, (0.5, 1.0))
    assert (value.size.height, value.size.width) == (3, 4)
    assert [(source.path, source.weight) for source in value.sources] == [
        (Path("a/b"), 1.0),
        (Path("c"), 4e-7),
    ]
    assert value.weighting.gamma == 3.0
    assert value.columns == {"punsafe": 0.5}


def test_origins_are_the_places_of_written_values_only(read):
    origins = {key: str(origin) for key, origin in read(EVERYTHING, "training.seed=7").origins.items()}
    assert origins["weighting.gamma"] == "r.yaml:2:35"
    assert origins["sources.0.path"] == "r.yaml:4:11"
    assert origins["training.seed"] == "command line: training.seed=7"
    assert "training.compile" not in origins


def test_what_is_dumped_loads_again_to_an_equal_value(read):
    value = read(EVERYTHING).value
    assert read(dump(value)).value == value
    assert "gamma: 3.0" in dump(value)
    assert "compile: false" in dump(value), "defaults are written out too"


class Text(Config):
    text: str
    number: float
    whole: int
    maybe: str | None


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n\t")),
    number=st.floats(allow_nan=False, allow_infinity=False),
    whole=st.integers(-(2**63), 2**63 - 1),
    maybe=st.sampled_from([None, "null", "yes", "1e5", "0o7", "2026-01-01", "~", "- a", "a: b", "#", "", "=", "<<"]),
)
def test_any_value_survives_dump_and_load(tmp_path, text, number, whole, maybe):
    value = Text(text=text, number=number, whole=whole, maybe=maybe)
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(value), encoding="utf-8", newline="\n")
    assert load(path, Text).value == value


def test_yaml_1_2_words_are_what_they_look_like(read):
    for word in ("no", "on", "yes", "2026-11-21", "12:30", "1_0.b"):
        assert read(f"name: {word}").value.name == word


def test_a_recipe_is_laid_over_those_it_extends(read):
    Path("low.yaml").write_text("name: low\ntraining: {seed: 1, compile: true}\nsources: [{path: a}, {path: b}]\n")
    Path("mid.yaml").write_text("extends: low.yaml\ntraining: {seed: 2}\n")
    loaded = read("extends: mid.yaml\nname: top\nsources: [{path: c}]\n")
    assert loaded.value.name == "top"
    assert (loaded.value.training.seed, loaded.value.training.compile) == (2, True)
    assert [str(source.path) for source in loaded.value.sources] == ["c"], "lists are replaced, not joined"
    assert str(loaded.origins["training.seed"]).endswith("mid.yaml:2:18")
    assert str(loaded.origins["training.compile"]).endswith("low.yaml:2:30")
    assert "extends" not in loaded.tree


def test_extends_is_relative_to_the_file_that_says_it_and_later_ones_win(read):
    Path("sub").mkdir()
    Path("sub/one.yaml").write_text("name: one\ntraining: {seed: 1}\n")
    Path("sub/two.yaml").write_text("name: two\n")
    Path("sub/both.yaml").write_text("extends: [one.yaml, two.yaml]\n")
    value = read("extends: sub/both.yaml\n").value
    assert (value.name, value.training.seed) == ("two", 1)


def test_another_kind_does_not_inherit_the_settings_of_the_old_one(read):
    Path("low.yaml").write_text("name: x\nweighting: {kind: min_snr, gamma: 3}\n")
    assert read("extends: low.yaml\nweighting: {kind: constant}\n").value.weighting.kind == "constant"
    assert read("extends: low.yaml\nweighting: {kind: min_snr, form: paper}\n").value.weighting.gamma == 3.0


def test_a_circle_of_recipes_is_refused_with_its_chain(read):
    Path("a.yaml").write_text("extends: r.yaml\n")
    with pytest.raises(UserError, match=r"circle: r\.yaml -> a\.yaml -> r\.yaml"):
        read("extends: a.yaml\n")


def test_a_recipe_that_extends_itself_is_a_circle(read):
    with pytest.raises(UserError, match="circle"):
        read("extends: r.yaml\n")


def test_extending_much_is_read_once_each(read):
    """Thirty files that each extend the one below twice would be 2^30 reads."""
    Path("0.yaml").write_text("name: x\n")
    for index in range(1, 30):
        Path(f"{index}.yaml").write_text(f"extends: [{index - 1}.yaml, {index - 1}.yaml]\n")
    assert read("extends: 29.yaml\n").value.name == "x"


def test_a_missing_parent_is_shown_where_it_is_named(read):
    with pytest.raises(UserError) as caught:
        read("name: x\nextends: nowhere.yaml\n")
    assert str(caught.value).startswith("r.yaml:2:10: ")
    assert "no such recipe" in str(caught.value)


def test_settings_are_frozen(read):
    with pytest.raises(ValueError, match="frozen"):
        read("name: x").value.training.seed = 3
