"""The verbs of `terminus config`: read a recipe, or make one of another program's settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from terminus import options
from terminus.cli_data import load_recipe
from terminus.errors import printable

config_app = typer.Typer(help="Show, explain and import recipes.")


@config_app.command("show")
def config_show(recipe: options.RecipeName, overrides: options.Overrides = None) -> None:
    """Show every value, and where it comes from: a line of a file, the command line, or the default."""
    from terminus.config.show import show_settings

    _print_lines(show_settings(load_recipe(recipe, overrides)))


@config_app.command("explain")
def config_explain(recipe: options.RecipeName, overrides: options.Overrides = None) -> None:
    """Explain every setting: type, default, meaning; `*` marks those that the recipe sets."""
    from terminus.config.show import explain

    _print_lines(explain(load_recipe(recipe, overrides)))


@config_app.command("import")
def config_import(source: options.ImportSource, out: options.ImportOut) -> None:
    """Make a recipe from settings of sd-scripts or SimpleTuner, or from a folder of img2dataset."""
    from terminus.importing.arguments import check_import

    check_import(source, out)
    from rich.console import Console

    from terminus.importing.command import import_recipe

    import_recipe(source, out, Console(highlight=False))


@config_app.command("schema")
def config_schema(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe to check as well.")] = None,
    overrides: options.Overrides = None,
) -> None:
    """Print the JSON Schema of recipes, for editors and programs."""
    import json

    if recipe is not None:
        load_recipe(recipe, overrides)
    from terminus.config.show import schema
    from terminus.training.recipe import Recipe

    print(json.dumps(schema(Recipe), indent=2))


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(printable(line))
