"""From a run to the text of its card: front matter by the hub's library, the rest by one template.

The template prints data and never is data: whatever a recipe or a caption holds is escaped for Markdown on its way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from terminus.card import numbers
from terminus.card.escape import (
    LONGEST,
    NOT_STATED,
    bibtex,
    bibtex_line,
    code,
    line,
    markdown,
    public_place,
    python_string,
    shell_word,
)
from terminus.card.facts import FinishedRun
from terminus.card.metadata import card_metadata

PROMPT = "a 3d render of a red apple on a black background"
"""For the get-started code of models of the embedded drawings, if nothing was sampled and no preview was asked for."""
ANY_PROMPT = "a prompt in the words of the captions that the model was trained on"
"""For that of other models."""


def render_card(run: FinishedRun, repository: str | None = None, gate: Mapping[str, object] | None = None) -> str:
    """The whole README.md, of the run's folder or of the `repository` that it is published as.

    `gate` is front matter that asks for consent before a download.
    """
    body = card_environment().get_template("card.md.j2").render(
        run=run, recipe=run.recipe, facts=run.facts, metrics=run.metrics, prompt=_prompt(run), citation=_citation(run),
        repository=repository,
    )  # fmt: skip
    return f"---\n{card_metadata(run, gate or {}).to_yaml()}\n---\n\n{body}"


def card_environment() -> Environment:
    """Templates whose every value is escaped for Markdown, and whose missing values are words."""
    environment = Environment(
        loader=PackageLoader("terminus", "assets"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # jinja2's own annotation allows only the types of its own filters
    cast(dict[str, object], environment.filters).update(
        count=numbers.format_count,
        significant=numbers.significant,
        stated=numbers.stated,
        stated_count=numbers.stated_count,
        fixed=numbers.fixed,
        size=numbers.format_bytes,
        duration=numbers.duration,
        mean=numbers.mean,
        distance=numbers.distance,
        ci=numbers.ci,
        share=numbers.share,
        trusted=Markup,
        code=code,
        place=public_place,
        listed=_listed,
        python=python_string,
        shell=shell_word,
    )
    return environment


def _shown(value: object) -> Markup:
    """A value as the template prints it: markup as it is, anything else escaped, None as words."""
    if isinstance(value, Markup):
        return value
    return NOT_STATED if value is None else markdown(str(value))


def _listed(values: Iterable[object]) -> Markup:
    return Markup(", ").join([_shown(value) for value in values]) or NOT_STATED


def _prompt(run: FinishedRun) -> str:
    """One that the model was asked for already."""
    # A prompt that was drawn shows the model as it is; an invented one may be nothing that it knows.
    sampled = [sample.prompt for sample in run.samples]
    previews = [text for entry in run.recipe.list("training.preview.prompts") if isinstance(text := entry.tree, str)]
    usual = PROMPT if run.embedded else ANY_PROMPT
    return next((line(text) for text in (*sampled, *previews) if line(text)), usual)


def _citation(run: FinishedRun) -> Markup:
    """BibTeX: the recipe's own entry, or one of the finished model; without a developer or a date it has neither."""
    # Whoever states a citation wants it word for word; every line is escaped all the same.
    if stated := run.recipe.text("run.citation"):
        return Markup("\n".join(bibtex_line(row) for row in stated.strip().splitlines()))
    words = re.findall("[a-z0-9]+", run.name[:LONGEST].lower())
    developer, date = bibtex(run.recipe.text("run.developer") or ""), run.finished
    note = bibtex(run.licence.name) if run.licence else ""
    fields = {"title": bibtex(run.name), "author": developer, "year": date[:4] if date else "", "note": note}
    lines = [f"  {key:6} = {{{value}}}," for key, value in fields.items() if value]
    return Markup("\n".join([f"@misc{{{'-'.join(words) or 'model'},", *lines, "}"]))
