"""Every code block of the documents, read without running it: languages, options, settings, syntax.

Which of them are run, and with what, is `test_running.py`; the others say why not, and the reasons are counted.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from terminus import cli
from terminus.config.load import load
from terminus.evaluation.bias_file import read_bias
from terminus.training.recipe import Recipe
from tests.documents.blocks import PAGES, ROOT, Block, blocks, commands, ours
from tests.house.test_command_line import SURFACE

BLOCKS = list(blocks())
LANGUAGES = {"python", "bash", "sh", "yaml", "text", "bibtex"}
NOT_RUN = {
    "installs packages": 9,
    "another program": 5,
    "sets up an environment": 3,
    "a synopsis": 3,
    "several GPUs": 3,
    "a server": 3,
    "a cluster": 2,
    "hours": 1,
    "a certificate": 1,
    "sends to the Hub": 1,
    "a file for SDXL": 1,
    "a file with a moving average": 1,
    "a LoHa or LoKr": 1,
}
"""Reason to the number of blocks that give it. A new one is a decision: can it really not run?"""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def place(block: Block) -> str:
    return block.place


def test_what_is_not_run_is_counted():
    assert Counter(block.reason for block in BLOCKS if block.reason is not None) == NOT_RUN


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_a_block_says_its_language(block: Block):
    assert block.language in LANGUAGES
    assert block.reason is None or block.language in ("python", "bash", "yaml"), "only what could run is excused"


@pytest.mark.parametrize("block", of("bash", "sh"), ids=place)
def test_shell_is_shell(block: Block):
    done = subprocess.run(["bash", "-n"], input=synopsis(block.text), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def synopsis(text: str) -> str:
    """`RECIPE [key.path=value ...] [--limit N]` as one would type it."""
    text = re.sub(r"\[((?:key\.path|--)[^\]]*)\]", r"\1", text).replace("key.path=value ...", "training.seed=1")
    return re.sub(r"\bN\b", "1", text)


@pytest.mark.parametrize("block", of("bash", "sh"), ids=place)
def test_terminus_takes_these_arguments(block: Block):
    """The real parser reads each command: verbs, options, numbers of arguments, types."""
    for command in commands(synopsis(block.text)):
        if (arguments := ours(command)) is not None:
            parse(arguments)


def parse(arguments: list[str]) -> None:
    """Raises what the command line would raise for these arguments."""
    command, name = typer.main.get_command(cli.app), "terminus"
    parent = None
    while True:
        try:
            context = command.make_context(name, list(arguments), parent=parent)
        except typer.Exit:
            return  # --version, --help
        if not isinstance(command, typer.core.TyperGroup):
            return
        verb, inner, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        assert verb is not None
        command, name, parent = inner, verb, context


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_have_these_options(page: Path):
    """In `terminus verb --option`, which may leave the rest out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`terminus ([^`]+)`", text):
        words = span.split()
        verb = " ".join(words[:2]) if " ".join(words[:2]) in SURFACE else words[0]
        if not re.fullmatch(r"[a-z]+( [a-z]+)?", verb):
            assert words[0].startswith("--") or words[0].isupper() or words[0] == "...", span
            verb = ""
        groups = {name.split()[0] for name in SURFACE if " " in name}
        assert verb in SURFACE or verb in groups, span
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= {*SURFACE.get(verb, []), "--help", "--version", "--debug"}, span


@pytest.mark.parametrize("block", [block for block in of("yaml") if not block.reason], ids=place)
def test_yaml_is_a_recipe(block: Block, tmp_path: Path):
    """On top of nano, as a user's file would extend it; a list is one of sources, `axes` are those of a bias probe."""
    content = YAML(typ="safe").load(block.text)
    text = block.text
    if "axes" in content:
        (tmp_path / "bias.yaml").write_text(text, encoding="utf-8")
        read_bias(tmp_path / "bias.yaml")
        return
    if isinstance(content, list):
        text = "data:\n  sources:\n" + "".join(f"    {line}\n" for line in block.text.splitlines())
    if isinstance(content, list) or "extends" not in content:
        text = "extends: nano.yaml\n" + text
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    load(path, Recipe)


@pytest.mark.parametrize("block", of("python"), ids=place)
def test_python_compiles_and_imports_what_there_is(block: Block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "terminus":
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
