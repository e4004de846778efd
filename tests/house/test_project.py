"""What surrounds the package: versions that fit together, extras that are documented, files that name real files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def constraints() -> dict[str, Version]:
    """Name to version, of the lines of constraints.txt that hold for this Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, Version] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(dict(default_environment())):
            (pin,) = requirement.specifier
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)])
def test_every_dependency_has_one_version_that_its_bounds_allow(text: str):
    """`make constraints` was run after the last change of pyproject.toml."""
    requirement = Requirement(text)
    assert requirement.specifier, "a lower bound"
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)])


def test_the_extras_are_documented():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9]+)` \|", text, re.MULTILINE) == sorted(
        EXTRAS, key=lambda extra: (extra in ("docs", "test"), extra)
    )


def test_ci_runs_on_every_python_that_is_promised():
    ci = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "ci.yml")
    tested = ci["jobs"]["test"]["strategy"]["matrix"]["python"]
    said = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").splitlines()[2]
    assert re.findall(r"3\.\d+", said) == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_calls_what_there_is(path: Path):
    workflow = YAML(typ="safe").load(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = re.findall(r"run: make ([a-z-]+)", path.read_text(encoding="utf-8"))
    assert [name for name in called if name not in targets] == []


def test_the_container_copies_files_that_there_are():
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert "constraints.txt" in copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
