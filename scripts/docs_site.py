"""Hooks of the documentation site: pages made from the code, and links that leave the documentation.

MkDocs calls `on_files` and `on_page_markdown`; `mkdocs.yml` names this file. MkDocs itself is imported where it is
needed, so that the tests can make the pages without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from terminus import cli
from terminus.config.outline import leaf_settings
from terminus.training.recipe import Recipe

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference of commands and of settings."""
    from mkdocs.structure.files import File

    for address, content in generated_pages().items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository outside `docs/` become their names; one that leads nowhere is an error."""
    from mkdocs.exceptions import PluginError

    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[3]).resolve()
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri} links to {match[3]}, which does not exist")
        place = f"`{target.relative_to(ROOT)}{(match[4] or '').replace('#L', ':')}`"
        return f"{match[2]} ({place})" if match[2].startswith("`terminus.") else place

    return LINK.sub(named, markdown)


def generated_pages() -> dict[str, str]:
    """Address in the documentation to the text of each page that is made from the code."""
    return {"reference/cli.md": command_page(), "reference/settings.md": settings_page()}


def command_page() -> str:
    """Every verb with its arguments and options."""
    lines = ["# Command line", "", "Made from the program itself; `terminus VERB --help` prints the same.", ""]
    for name, command in commands(typer.main.get_command(cli.app), "terminus"):
        lines += [f"## {name}", "", (command.help or "").strip(), "", "| argument or option | default | meaning |"]
        lines += ["|---|---|---|"]
        for parameter in command.params:
            spelled = ", ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.metavar
            default = "" if parameter.default in (None, False) else parameter.default
            lines.append(f"| `{spelled}` | {cell(default)} | {cell(getattr(parameter, 'help', '') or '')} |")
        lines.append("")
    return "\n".join(lines)


def commands(
    command: typer.core.TyperCommand | typer.core.TyperGroup, name: str
) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Pairs of full name and command, in the order of --help."""
    if not isinstance(command, typer.core.TyperGroup):
        yield name, command
        return
    for verb, inner in command.commands.items():
        yield from commands(inner, f"{name} {verb}")


def settings_page() -> str:
    """Every setting of a recipe, grouped by its first word."""
    lines = ["# Settings", "", "Made from the schema; `terminus config explain RECIPE` shows a recipe's values.", ""]
    group = ""
    for setting in leaf_settings(Recipe):
        if setting.key.startswith("data.filters_of."):
            continue  # the filters of one source: the same again
        first = setting.key.split(".")[0]
        if first != group:
            group = first
            lines += ["", f"## {group}", "", "| setting | type | default | meaning |", "|---|---|---|---|"]
        kinds = setting.type.replace("|", "\\|")
        lines.append(f"| `{setting.key}` | {kinds} | {cell(setting.default)} | {cell(setting.description)} |")
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """Text that stays inside one cell of a table."""
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())
