"""Each mistake has its place, its rule and the nearest right answer, and all come at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from terminus.config.errors import ConfigError
from terminus.config.load import load
from terminus.errors import UserError


def problems(read, text, *overrides):
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return [str(problem) for problem in caught.value.problems]


def one(read, text, *overrides):
    found = problems(read, text, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_an_unknown_key_names_the_nearest(read):
    text = "name: x\nweighting:\n  kind: min_snr\n  gama: 5\n"
    assert one(read, text) == (
        "r.yaml:4:3: Unknown key `gama` in `weighting`. Did you mean `gamma`?\n      gama: 5\n      ^\n"
    )


def test_an_unlike_key_lists_the_valid_ones(read):
    message = one(read, "name: x\ntraining: {zzz: 1}\n")
    assert "Valid here: `seed`, `images`, `betas`, `compile`." in message


def test_a_key_named_like_a_kind_is_still_found(read):
    """pydantic puts the tag into its location; a key of the same name must not be taken for it."""
    message = one(read, "name: x\nweighting: {kind: min_snr, min_snr: 1}\n")
    assert message.startswith("r.yaml:2:28: Unknown key `min_snr` in `weighting`.")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('name: x\ntraining: {seed: "5"}', "2:18", 'must be a whole number, and this is the text "5"'),
        (
            "name: x\ntraining: {seed: true}",
            "2:18",
            "`training.seed` must be a whole number, and this is true",
        ),
        ("name: x\ntraining: {seed: 1.5}", "2:18", "must be a whole number, and this is 1.5"),
        ("name: x\ntraining: {compile: 1}", "2:21", "must be true or false, and this is 1"),
        ("name: 5", "1:7", "`name` must be a text, and this is 5. Quote it if it is meant as text."),
        ("name:", "1:6", "`name` must be a text, and this is empty (null)"),
        ("name: x\ntraining: {betas: [1]}", "2:19", "needs [number, number], and this has 1 entries"),
        ("name: x\ntraining: {images: foo}", "2:20", 'must be integer | all, and this is the text "foo"'),
        ("name: x\ncolumns: {a: .inf}", "2:14", "`columns.a` must be a finite number"),
        ("name: x\ncolumns: {a: 1e999}", "2:14", "`columns.a` must be a finite number"),
        ("name: x\nsources: [{weight: 1}]", "2:11", "The key `path` is missing in `sources.0`"),
        ("name: x\nanchor: {pth: a, path: b}", "2:10", "Unknown key `pth` in `anchor`. Did you mean `path`?"),
        ("name: x\nsources: {path: a}", "2:10", "`sources` must be a list, and this is a mapping"),
        ("name: x\ntraining: 3", "2:11", "`training` must be a mapping"),
        ("name: x\nweighting: {kind: minsnr}", "2:19", "no kind `minsnr`. Did you mean `min_snr`?"),
        (
            "name: x\nweighting: {gamma: 1}",
            "2:1",
            "has no `kind`. Say which: `kind` is one of `constant`, `min_snr`",
        ),
        (
            "name: x\nweighting: {kind: min_snr, form: papers}",
            "2:34",
            "Did you mean `paper`? It is one of `augmented`, `paper`.",
        ),
        ("name: x\ntraining: {betas: [2, 1]}", "2:11", "`training`: the first beta is not above the second"),
        ("name: x\ntraining: {seed: 1e9}", "2:18", "and this is 1000000000.0. Write 1000000000."),
        ("training: {}", "1:1", "The key `name` is missing. It has no default."),
    ],
)
def test_each_wrong_value_says_where_and_why(read, text, place, message):
    found = one(read, text)
    assert found.startswith(f"r.yaml:{place}: ")
    assert message in found


def test_all_problems_come_at_once(read):
    found = problems(read, "nme: x\ntraining: {seed: a, betas: 1}\nsources: [{path: 1}, {}]\n", "foo.bar=1")
    assert len(found) == 7
    with pytest.raises(ConfigError, match="7 problems in the settings"):
        read("nme: x\ntraining: {seed: a, betas: 1}\nsources: [{path: 1}, {}]\n", "foo.bar=1")


def test_a_wrong_entry_is_not_also_a_list_that_is_too_short(read):
    nested = "name: x\ntraining: {betas: [2]}\nsources: [{pth: 1}]\n"
    assert not [problem for problem in problems(read, nested) if "at least" in problem]


def test_a_value_of_an_extended_file_is_shown_there(read):
    Path("low.yaml").write_text("name: x\n\ntraining: {seed: no}\n")
    assert one(read, "extends: low.yaml\n").startswith("low.yaml:3:18: `training.seed` must be a whole number")


def test_a_long_line_is_cut_around_the_caret(read):
    text = "name: x\ntraining: {" + " " * 5000 + "sed: 1}\n"
    excerpt, caret = one(read, text).splitlines()[1:3]
    assert len(excerpt) < 120
    assert excerpt[caret.index("^") :].startswith("sed: 1")


SYNTAX = {
    "name: x\nname: y": "2:1: The key `name` is here twice. It is already set at r.yaml:1:1",
    "name: x\ntraining: {seed: 1, seed: 2}": "The key `seed` is here twice",
    "name: !!python/object/apply:os.system [ls]": "python/object/apply:os.system` is not allowed",
    "name: !thing x": "The tag `!thing` is not allowed",
    "name: !!set {a}": "is not allowed",
    "name: !!int abc": "cannot be read as its type",
    "name: x\ntraining:\n\tseed: 1": "replace the tab",
    "name: [1, 2": "not valid YAML",
    'name: "x\n': "r.yaml:1:7: This is not valid YAML",
    "name: x\n---\nname: y": "not valid YAML",
    "- a\n- b": "1:1: This is not a mapping",
    "just words": "1:1: This is not a mapping",
    "1: x": "This key is not a name",
    "? [a]\n: b": "This key is not a name",
    "a: &a {seed: 1}\ntraining:\n  <<: *a": "Merge keys are not part of YAML 1.2",
    "extends: 5": "`extends` is the name of a recipe",
    "a: " + "[" * 100 + "]" * 100: "nested more than 32 deep",
    "a: " + "[" * 20000: "nested more than 32 deep",
    "a: &a [*a]": "nested more than 32 deep",
    'name: "\\ud800"': "cannot be read as its type",
    "name: \x07": "not valid YAML",
    "name: " + "9" * 5000: "cannot be read as its type",
}


@pytest.mark.parametrize("text", SYNTAX)
def test_what_is_not_a_recipe_is_refused_in_one_paragraph(read, text):
    with pytest.raises(UserError) as caught:
        read(text)
    assert SYNTAX[text] in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_is_built(read):
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))
    with pytest.raises(ConfigError, match="More than 20000 values"):
        read(text)


def test_aliases_that_stand_for_little_are_fine(read):
    value = read("name: x\nsources: [&a {path: p}, *a]\n").value
    assert value.sources[0] == value.sources[1]


def test_files_that_cannot_be_recipes(tmp_path, monkeypatch, schema):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe.yaml")
    Path("empty.yaml").write_text("# nothing\n")
    Path("latin.yaml").write_bytes("name: x\n# caf\u00e9\n".encode("latin-1"))
    Path("large.yaml").write_text("#" * 1_000_001)
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    for name, message in {
        "folder": "folder: this is a folder",
        "pipe.yaml": "pipe.yaml: this is not a regular file",
        "empty.yaml": "empty.yaml: the file is empty",
        "latin.yaml": "latin.yaml:2: the text is not UTF-8",
        "large.yaml": "large.yaml: the recipe is larger than 1 MB",
        "emty.yaml": "Did you mean `empty.yaml`?",
    }.items():
        with pytest.raises(UserError) as caught:
            load(name, schema)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert load("bom.yaml", schema).value.name == "x"
