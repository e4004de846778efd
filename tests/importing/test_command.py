"""The command, and files that mean harm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from terminus import cli
from terminus.errors import UserError
from terminus.importing.command import read_settings
from terminus.importing.recipe import settle


def test_the_command_writes_a_recipe_that_shows(here: Path, capsys):
    assert cli.main(["config", "import", "kohya/dataset.toml", "--out", "new/r.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "Not carried over" in printed
    assert "flip_aug" in printed
    assert cli.main(["config", "show", "new/r.yaml"]) == 0
    assert "data.mix.heldin = 10" in capsys.readouterr().out
    assert [path.name for path in (here / "new").iterdir()] == ["r.yaml"]


def test_nothing_is_overwritten(here: Path, capsys):
    (here / "r.yaml").write_text("mine", encoding="utf-8")
    assert cli.main(["config", "import", "kohya/dataset.toml", "--out", "r.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (here / "r.yaml").read_text(encoding="utf-8") == "mine"
    assert cli.main(["config", "import", "kohya/dataset.toml", "--out", "r.toml"]) == 2
    assert cli.main(["config", "import", "no-such.toml", "--out", "s.yaml"]) == 2


DEEP = 10_000


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", b"[" * DEEP + b"]" * DEEP, "nested too deep"),
        ("x.toml", b"a = " + b"[" * DEEP + b"]" * DEEP, "nested too deep"),
        ("x.json", b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than"),
        ("x.json", b"[" + b"1," * 6000 + b"1]", "more than 5000 values"),
        ("x.json", b" " * (5 << 20), "larger than 4 MiB"),
        ("x.toml", "a = 1\nb = 'é'".encode("latin-1"), "x.toml:2: the text is not UTF-8"),
        ("x.json", b'{"datasets": [], "datasets": []}', "the key datasets is there twice"),
        ("x.json", b'{"datasets": NaN}', "NaN is no JSON number"),
        ("x.json", b'{"datasets": ' + b"1" * 5000 + b"}", "not JSON that can be read"),
        ("x.toml", b"a = ", "not TOML that can be read"),
        ("x.toml", b"title = 'a page'", "not a settings file or folder"),
        ("x.json", b"3", "not a settings file or folder"),
        ("x.json", b"", "not JSON that can be read"),
        ("x.txt", b"", "not a settings file or folder"),
    ],
)
def test_hostile_files(here: Path, name: str, data: bytes, message: str):
    (here / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        settle(read_settings(here / name))
    assert name in str(caught.value)


def test_text_of_the_file_is_neither_yaml_nor_control(here: Path, imported):
    """A key, a folder and a value that would end a comment, open a mapping or clear a screen."""
    (here / "d.toml").write_text(
        '[[datasets]]\n"a\\n: {evil" = "\\u001b[2J\\u2028# x"\n[[datasets.subsets]]\n'
        'image_dir = "x: [y\\n# z\\u0085"\nclass_tokens = "\\nrun: {dir: hacked}"\n',
        encoding="utf-8",
    )
    recipe, text, printed = imported(here / "d.toml")
    assert str(recipe.data.sources[0].path).endswith("x: [y\n# z\x85")
    assert recipe.run.dir == "runs/d"
    assert "\x1b" not in text + printed
    assert "unknown" in text


def test_thousands_of_sources_are_refused(here: Path):
    subsets = "".join(f'[[datasets.subsets]]\nimage_dir = "{number}"\n' for number in range(501))
    (here / "d.toml").write_text(f"[[datasets]]\n{subsets}", encoding="utf-8")
    with pytest.raises(UserError, match="more than 500 sources"):
        read_settings(here / "d.toml")
