"""What a published repository holds: model folder and single file, card, samples, evaluation, data summary.

The Hub counts downloads of `model_index.json` and of safetensors at the top, and front-ends want the latter: both forms
lie in one repository. What shows images of the data (the evaluation's report) or paths of a machine (the recipe, the
log) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from terminus.card.data_summary import render_data_summary
from terminus.card.facts import FinishedRun
from terminus.card.render import render_card
from terminus.errors import UserError

GATED_FIELDS = {"Name": "text", "Intended use": "text", "I accept the licence and its use restrictions": "checkbox"}


@dataclass(frozen=True)
class PublishedFile:
    """One file of the repository."""

    path: str
    """In the repository."""
    source: Path | bytes
    """The file on this machine, or its content."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class Terms:
    """How others get the model."""

    private: bool = False
    gated: bool = False
    """Whether the card asks readers to accept the licence before they download."""
    collection: str | None = None
    """Slug of a collection that the repository is added to."""
    space: bool = False
    """Whether a Space of the same name serves the model."""


def single_file_name(run: FinishedRun) -> str:
    """Name of the single file, of the model's name."""
    words = re.findall(r"[A-Za-z0-9.]+", run.name)
    # SD.Next knows velocity prediction, and flows, by the name.
    ending = "-vpred" if run.scheduler.text("prediction_type") == "v_prediction" else ""
    if run.is_flow:
        ending = "-flow"
    return f"{'-'.join(words)[:80] or 'model'}{ending}.safetensors"


def repository_files(run: FinishedRun, repository: str, terms: Terms, single: Path) -> list[PublishedFile]:
    """All files, the card last: nobody finds a card before its weights.

    UserError for a model folder with links that lead out of it.
    """
    files = [*_model_files(run.folder / "model"), *_evaluation_files(run)]
    files.append(PublishedFile(single.name, single))
    summary = render_data_summary(run)
    files.append(PublishedFile("data-summary.md", summary.encode()))
    card = render_card(run, repository, gate(run) if terms.gated else None)
    return [*sorted(files, key=lambda file: file.path), PublishedFile("README.md", card.encode())]


def gate(run: FinishedRun) -> dict[str, object]:
    """Front matter that makes the Hub ask for consent."""
    licence = run.licence.name if run.licence else "stated on this page"
    prompt = f"The licence of this model is {licence}. You agree to it, and to its use restrictions, to get the files."
    return {
        "extra_gated_heading": "Accept the licence to get this model",
        "extra_gated_prompt": f"{prompt}\n\n{run.restrictions}" if run.restrictions else prompt,
        "extra_gated_fields": GATED_FIELDS,
        "extra_gated_button_content": "Accept",
    }


def _model_files(folder: Path) -> Iterator[PublishedFile]:
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or path.name == "README.md":
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(
                "This link leads out of the model", where=str(path), rule="Only its own files are published"
            )
        yield PublishedFile(path.relative_to(folder).as_posix(), path)


def _evaluation_files(run: FinishedRun) -> Iterator[PublishedFile]:
    """Sheets and single images of what the model drew, and its numbers; at the places that the card names."""
    for sample in run.samples:
        yield PublishedFile(sample.file, run.folder / sample.file)
    if run.sheet:
        yield PublishedFile(run.sheet, run.folder / run.sheet)
    names = ["metrics.json", "probe.png"]
    # The report shows the held-out images themselves; those of the embedded drawings are free to show.
    names += ["report.html"] if run.embedded else []
    for name in names:
        path = run.evaluation / name
        if path.is_file():
            yield PublishedFile(run.beside(path), path)
    results = run.folder / ".eval_results" / "terminus.yaml"
    if results.is_file():
        yield PublishedFile(".eval_results/terminus.yaml", results)
