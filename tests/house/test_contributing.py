"""What CONTRIBUTING.md and the documents say of the code is what the code is: limits, commands, names, paths."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from terminus.config.outline import leaf_settings
from terminus.training.recipe import Recipe
from tests.house import swift, test_density, test_settings, test_source
from tests.house.test_command_line import SURFACE

ROOT = Path(__file__).parents[2]
TEXT = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "GPU.md"]
LIMITS: list[tuple[str, float]] = [
    (r"([\d.]+) lines a file", test_source.MAX_FILE),
    (r"([\d.]+) a function", test_source.MAX_FUNCTION),
    (r"at most ([\d.]+) settings", test_settings.MAX_SETTINGS),
    (r"`terminus --help` in ([\d.]+) seconds", swift.SECONDS),
    (r"at least ([\d.]+) comments per 100", test_density.MIN_COMMENTS),
    (r"complexity of at most ([\d.]+)", test_density.MAX_COMPLEXITY_P95),
]
OURS = ("src", "tests", "scripts", "recipes", "benchmarks", "docs")
NAMES_OF_OTHERS = {"src/stable-diffusion.cpp", "src/model_loader.cpp"}
"""Paths inside other programs, which begin like ours."""


@pytest.mark.parametrize(("pattern", "limit"), LIMITS)
def test_a_limit_that_contributing_states_is_the_one_that_is_tested(pattern: str, limit: float):
    assert [float(number) for number in re.findall(pattern, TEXT)] == [limit]


def test_the_limit_of_settings_is_near_what_there_is():
    """A limit far above would not be felt by who adds a setting."""
    keys = {setting.key for setting in leaf_settings(Recipe) if not setting.key.startswith("data.filters_of.")}
    assert len(keys) > 0.8 * test_settings.MAX_SETTINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_has_what_a_page_calls(page: Path):
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    called = re.findall(r"(?:`|^)make ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in called if name not in targets] == []


def test_the_project_says_what_it_does():
    """A verb of the description is a verb of the command line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    verbs = {"Trains": "train", "samples": "sample", "judges": "evaluate", "publishes": "publish", "serves": "serve"}
    said = re.findall(r"\w+", project["description"].split(" SDXL")[0])
    assert [word for word in said if word != "and" and verbs[word] not in SURFACE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page: Path):
    paths = re.findall(rf"`((?:{'|'.join(OURS)})/[\w./*-]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in paths if path not in NAMES_OF_OTHERS and not list(ROOT.glob(path))] == []


def resolved(name: str) -> Any:
    """The module, or what a module holds, of a dotted name below `terminus`."""
    module, *rest = name.split(".")
    found: Any = importlib.import_module(module)
    for part in rest:
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(f"{found.__name__}.{part}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_a_page_gives_exist(page: Path):
    """`terminus.room.name`, and `room.module.Class` as the decisions write it."""
    text = page.read_text(encoding="utf-8")
    rooms = "|".join(path.name for path in (ROOT / "src" / "terminus").iterdir() if (path / "__init__.py").exists())
    names = re.findall(r"`(terminus(?:\.\w+)+)(?:\([^`]*\))?`", text)
    names += [f"terminus.{name}" for name in re.findall(rf"`((?:{rooms})\.(?:\w+\.)*[A-Z]\w+)`", text)]
    for name in names:
        if name != "terminus.json":  # a file
            assert resolved(name) is not None
