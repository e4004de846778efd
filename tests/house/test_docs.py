"""The documentation as its reader meets it: every page is in the map, every link leads somewhere.

`make docs` builds the site and asks the same again; this needs no MkDocs, so it runs with every `make test`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.house.test_command_line import SURFACE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "benchmarks").rglob("*.md"))]
GENERATED = {"reference/cli.md", "reference/settings.md"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def script(name: str) -> ModuleType:
    """A file of scripts/, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return script("docs_site")


def addresses(entry: Any) -> Iterator[str]:
    """The pages below one entry of the navigation."""
    if isinstance(entry, str):
        yield entry
        return
    inner = entry if isinstance(entry, list) else entry.values()
    for one in inner:
        yield from addresses(one)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The headings of a page as links name them; code is not looked at."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return frozenset(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings)


def test_every_page_is_in_the_navigation():
    named = list(addresses(YAML(typ="safe").load(ROOT / "mkdocs.yml")["nav"]))
    assert len(named) == len(set(named))
    assert sorted(named) == sorted({str(page.relative_to(DOCS)) for page in PAGES} | GENERATED)


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    wrong: list[str] = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue  # the web: asked by nobody, tests are offline
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if str(target.relative_to(ROOT)) in {f"docs/{page}" for page in GENERATED}:
            continue
        lost = bool(anchor) and target.suffix == ".md" and anchor not in anchors(target)
        if not target.exists() or lost:
            wrong.append(link)
    assert wrong == []


def test_the_command_line_and_the_settings_have_pages(site: ModuleType):
    pages = site.generated_pages()
    assert set(pages) == GENERATED
    verbs = [verb for verb in SURFACE if verb]
    assert [verb for verb in verbs if f"## terminus {verb}\n" not in pages["reference/cli.md"]] == []
    assert pages["reference/settings.md"].count("| `training.") > 20


def test_the_glossary_has_one_line_for_each_term():
    lines = (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    terms = [row[0] for row in rows if row[0] != "term"]
    assert len(terms) > 40
    assert len(terms) == len(set(terms))
    assert all(len(row) == 2 and row[1] for row in rows)


def test_the_tour_names_the_line_of_every_step():
    """`python scripts/tour_lines.py` writes them anew."""
    page = (DOCS / "tour.md").read_text(encoding="utf-8")
    assert page.count(".py#L") > 30
    assert script("tour_lines").linked(page) == page
