"""The command line: a frozen surface, an answer in half a second, and one paragraph for every failure."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from packaging.version import Version

from terminus import cli, cli_config
from terminus.errors import Stopped, UserError
from tests.house.swift import answers_soon

SURFACE = {
    "": ["--version", "--debug"],
    "demo": ["--out"],
    "prepare": [
        *("RECIPE", "KEY.PATH=VALUE", "--plan", "--images", "--gpu", "--price-gpu", "--price-core", "--json"),
    ],
    "caption": ["RECIPE", "KEY.PATH=VALUE", "--limit", "--trial"],
    "data verify": ["STORE", "--remove"],
    "data list": ["RECIPE", "KEY.PATH=VALUE", "--json"],
    "train": ["RECIPE", "KEY.PATH=VALUE", "--plan", "--gpu", "--processes", "--json", "--watch"],
    "sample": [
        *("MODEL", "--prompt", "--negative", "--count"),
        *("--image", "--strength", "--mask", "--outpaint", "--upscale", "--hires", "--fill", "--feather", "--padding"),
        "--again",
        *("--size", "--steps", "--guidance", "--rescale", "--interval", "--solver", "--spacing", "--seed"),
        *("--variation", "--lora", "--control"),
        *("--out", "--format", "--private", "--sign", "--compile", "--offload", "--device"),
    ],
    "serve": [
        *("[MODEL]...", "--host", "--port", "--token-file", "--models", "--folder", "--runs", "--root-path"),
        *("--devices", "--threads", "--expand", "--safety", "--sign", "--stdio"),
    ],
    "inspect": ["PATH", "--json", "--fix", "--as", "--probe"],
    "convert": ["SOURCE", "TARGET", "--precision", "--shard-size", "--ema", "--onto"],
    "merge": [
        *("MODEL[:WEIGHT]...", "--out", "--method", "--block", "--density", "--seed", "--as"),
        *("--lora", "--adapter", "--rank", "--error", "--precision", "--shard-size"),
    ],
    "extract": ["TUNED", "BASE", "--out", "--rank", "--error"],
    "evaluate": [
        *("MODEL_OR_RUN", "--out", "--compare", "--reference", "--training", "--features", "--any-size"),
        "--bias",
        *("--judge", "--judge-model", "--judge-key", "--recipe", "--prompts", "--count", "--steps", "--seed"),
    ],
    "card": ["RUN_DIR", "--check"],
    "publish": ["RUN_DIR", "REPOSITORY", "--really", "--private", "--gated", "--collection", "--space", "--civitai"],
    "bench sample": [
        *("MODEL", "--against", "--size", "--steps", "--batch", "--runs", "--compile", "--offload", "--device"),
        "--out",
    ],
    "bench vae": ["MODEL", "--size", "--device", "--out"],
    "config show": ["RECIPE", "KEY.PATH=VALUE"],
    "config explain": ["RECIPE", "KEY.PATH=VALUE"],
    "config import": ["SOURCE", "--out"],
    "config schema": ["[RECIPE]", "KEY.PATH=VALUE"],
}
# pydantic is not among them: typer reads its own arguments with it
HEAVY = ("torch", "ruamel.yaml", "diffusers", "transformers", "daft", "lance", "numpy", "PIL")


def surface(command: typer.core.TyperCommand | typer.core.TyperGroup, name: str = "") -> dict[str, list[str]]:
    """Verb to its arguments and options, in order."""
    if isinstance(command, typer.core.TyperGroup):
        own = {name: [option.opts[0] for option in command.params]} if command.params else {}
        inner = [surface(one, f"{name} {verb}".strip()) for verb, one in command.commands.items()]
        return {verb: options for part in (own, *inner) for verb, options in part.items()}
    return {name: [one.opts[0] if one.opts[0].startswith("-") else str(one.metavar) for one in command.params]}


def terminus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "terminus", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


def test_the_surface_is_frozen():
    """A new verb or option is a decision: change this table, and say so in CHANGELOG.md."""
    assert surface(typer.main.get_command(cli.app)) == SURFACE


@pytest.mark.parametrize("verb", SURFACE)
def test_help_answers_in_half_a_second(verb: str):
    def check(result: subprocess.CompletedProcess[str]) -> None:
        assert result.returncode == 0, result.stderr
        assert f"terminus {verb}".strip() in result.stdout

    assert answers_soon([sys.executable, "-m", "terminus", *verb.split(), "--help"], check)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from terminus.cli import main; main(['train', '--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_version():
    """That of the installed package; `tests/test_wheel.py` compares it with the tags."""
    version = metadata.version("terminus-xl")
    assert terminus("--version").stdout == f"terminus {version}\n"
    assert Version(version).release != (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "nano"], "Did you mean 'train'"),
        (["sample", "nano", "--promt", "x"], "`--prompt`"),
        (["sample", "nano", "--out", "x"], "Missing option '--prompt'. Say what to draw"),
        (["sample", "nano", "--out", "x", "--prompt", "x", "--steps", "few"], "Invalid value for '--steps'"),
        (["config", "show", "nanoo"], "Did you mean `nano`"),
        (["config", "show", "nano", "training.sed=1"], "Did you mean `seed`?"),
        (
            ["config", "show", "nano", "training.checkpointing=all"],
            "Did you mean `activation_checkpointing`? It was called",
        ),
        (["config", "show", "nano", "model.text=nano"], "Did you mean `text_encoders`? It was called `text`."),
        (["config"], "Missing command"),
    ],
)
def test_the_users_mistake_is_one_paragraph_and_exit_2(arguments: list[str], message: str, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    said = printed.err.removeprefix("loading PyTorch and what runs on it ...\n")  # where that takes long
    assert said.startswith("error: ")
    assert message in said
    assert "Traceback" not in printed.err


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli_config, "load_recipe", fail)
    return cli.main(["config", "show", "nano", *options])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("the store is empty", where="x.lance"), 2, "error: x.lance: the store is empty.\n"),
        (Stopped(), 75, "The same command continues: terminus config show nano\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops. To see where: terminus config show nano --debug\n"),
        (BrokenPipeError(32, "a worker's pipe"), 1, "BrokenPipeError"),
        (SystemExit(3), 1, "SystemExit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_exception_has_its_exit_code(error, code, message, monkeypatch, capfd):
    assert fails_with(error, monkeypatch) == code
    printed = capfd.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_debug_shows_where(monkeypatch, capsys):
    assert fails_with(ZeroDivisionError("oops"), monkeypatch, "--debug") == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "test_command_line.py" in printed


def test_text_of_the_user_is_neither_markup_nor_control(monkeypatch, capsys):
    fails_with(UserError("[bold]x[/bold] \x1b[2Jgone \u202eback"), monkeypatch)
    assert capsys.readouterr().err == "error: [bold]x[/bold] \\x1b[2Jgone \\x202eback.\n"


def test_a_place_is_never_wrapped(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    place = "a/rather/long/folder/name/that/is/wider/than/the/terminal/recipe.yaml:12:7"
    fails_with(UserError("this is wrong", where=place), monkeypatch)
    assert f"{place}: this is wrong" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["config", "schema"], ["--version"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_quiet(arguments: list[str]):
    """More than the buffer holds, so that printing fails; less, so that the flush does; and what rich prints."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "terminus", *arguments]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 141


def test_show_and_explain_and_schema_of_a_shipped_recipe(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "show", "nano", "training.seed=7"]) == 0
    assert "# command line: training.seed=7" in capsys.readouterr().out
    assert cli.main(["config", "explain", "nano"]) == 0
    assert "training.seed: integer" in capsys.readouterr().out
    assert cli.main(["config", "schema"]) == 0
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_do_not_spin_unless_told_to(variables: dict[str, str], expected: str):
    """libgomp reads it when torch is imported; who has set either variable has decided."""
    ours = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import os, terminus; print(os.environ.get('GOMP_SPINCOUNT'))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**ours, **variables}
    )
    assert result.stdout.strip() == expected
