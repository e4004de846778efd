"""The recipes and their schema: few settings, each documented, and every shipped recipe valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from terminus.config.load import dump, load
from terminus.config.outline import leaf_settings
from terminus.training.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
MAX_SETTINGS = 180
"""Sources and filters are what a user must name, and each kind of source brings its own few; the rest stays small."""


def test_there_are_few_settings():
    # Filters of one source are those of all once more.
    keys = {setting.key for setting in leaf_settings(Recipe) if not setting.key.startswith("data.filters_of.")}
    assert 20 < len(keys) <= MAX_SETTINGS


def test_every_setting_is_documented():
    assert [setting.key for setting in leaf_settings(Recipe) if not setting.description.strip()] == []


def test_nano_is_shipped():
    assert "nano" in [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_what_it_dumps(path: Path, tmp_path: Path):
    value = load(path, Recipe).value
    again = tmp_path / "recipe.yaml"
    again.write_text(dump(value), encoding="utf-8")
    assert load(again, Recipe).value == value


@pytest.mark.parametrize("name", ["nano", "nano.yaml", "recipes/nano.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load(name, Recipe).value == load(RECIPES[[path.stem for path in RECIPES].index("nano")], Recipe).value
