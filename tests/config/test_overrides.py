"""`key.path=value`: one more layer over the recipe, with the same rules and its own place in messages."""

from __future__ import annotations

import pytest

from terminus.config.errors import ConfigError

TEXT = "name: x\nsources: [{path: a}, {path: b}]\nweighting: {kind: min_snr, gamma: 3}\n"


def test_values_are_yaml(read):
    value = read(TEXT, "name='5'", "training.betas=[0.1, 1]", "training={seed: 3}", "training.compile=true").value
    assert (value.name, value.training.betas) == ("5", (0.1, 1.0))
    assert (value.training.seed, value.training.compile) == (3, True)


def test_a_list_entry_is_named_by_its_index(read):
    value = read(TEXT, "sources.1.path=c", "sources.1.weight=2").value
    assert [str(source.path) for source in value.sources] == ["a", "c"]
    assert [source.weight for source in value.sources] == [1.0, 2.0]


def test_a_list_is_replaced_whole(read):
    assert len(read(TEXT, "sources=[{path: z}]").value.sources) == 1


def test_keys_that_the_recipe_does_not_have_are_made(read):
    assert str(read(TEXT, "anchor.path=z").value.anchor.path) == "z"
    assert str(read(TEXT + "anchor:\n", "anchor.path=z").value.anchor.path) == "z", "also under a null"


def test_the_last_of_two_wins(read):
    assert read(TEXT, "training.seed=1", "training.seed=2").value.training.seed == 2


def test_a_kind_clears_the_settings_of_the_kind_before_it(read):
    assert read(TEXT, "weighting.kind=constant").value.weighting.kind == "constant"
    assert read(TEXT, "weighting.kind=min_snr").value.weighting.gamma == 3.0, "the same kind keeps them"


def test_the_order_of_kind_and_its_settings_does_not_matter(read):
    text = "name: x\nweighting: {kind: constant}\n"
    for overrides in (
        ("weighting.gamma=2", "weighting.kind=min_snr"),
        ("weighting.kind=min_snr", "weighting.gamma=2"),
    ):
        assert read(text, *overrides).value.weighting.gamma == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sed=1", "Did you mean `seed`?\n    training.sed=1\n             ^"),
        (
            "training.seed=x",
            'must be a whole number, and this is the text "x".\n    training.seed=x\n                  ^',
        ),
        ("training.seed", "This is not an override."),
        ("=1", "This is not an override."),
        ("a..b=1", "This is not an override."),
        ("training.seed=[1", "not valid YAML"),
        ("name=!!python/name:os.system", "is not allowed"),
        ("sources.2.path=z", "`sources` is a list and has no entry `2`. Its entries are 0 to 1."),
        ("sources.x.path=z", "`sources` is a list and has no entry `x`."),
        ("training.0.seed=z", "`training` is not a list in the recipe."),
        ("extends=other", "Unknown key `extends`"),
    ],
)
def test_a_wrong_override_is_its_own_excerpt(read, override, message):
    with pytest.raises(ConfigError) as caught:
        read(TEXT, override)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"command line: {override}: ")
    assert message in str(caught.value)


def test_all_malformed_overrides_come_at_once(read):
    with pytest.raises(ConfigError) as caught:
        read(TEXT, "one", "two", "name=y")
    assert len(caught.value.problems) == 2
