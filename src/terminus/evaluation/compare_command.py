"""`terminus evaluate --compare A B ...`: each is evaluated into a folder of its own, then compared in pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console

from terminus.errors import UserError
from terminus.evaluation import held_out
from terminus.evaluation.against import Against, Opened
from terminus.evaluation.captions import Captions, ImageSource, from_file
from terminus.evaluation.command import Own, evaluate_opened
from terminus.evaluation.compare import DEFINITIONS, Comparison, Subject, differences
from terminus.evaluation.distribution.measure import Distribution
from terminus.evaluation.folder_command import judge_folder
from terminus.evaluation.image_folder import open_folder
from terminus.evaluation.image_folder_names import is_image_folder
from terminus.evaluation.metrics import write_metrics
from terminus.evaluation.pages import page_environment
from terminus.evaluation.rows import EvaluationRow, images_by_key, read_evaluation_rows
from terminus.evaluation.settings import EvaluationSettings
from terminus.evaluation.trained import TrainedOn
from terminus.sampling.sheet import sheet

SHOWN = 16
Key = tuple[str, str, int]


@dataclass(frozen=True)
class _Judged:
    name: str
    folder: str
    rows: Sequence[EvaluationRow]
    images: Mapping[Key, ImageSource]
    distributions: tuple[Distribution, ...]


def compare_models(
    names: Sequence[str],
    out: Path,
    settings: EvaluationSettings,
    prompts: Path | None = None,
    trained: TrainedOn | None = None,
    against: Against | None = None,
    console: Console | None = None,
) -> Path:
    """Compares models (and folders of images) with the first; returns the path of `metrics.json`.

    All are asked for the prompts of the file, or for the captions that `trained` held out, and for the same probes.
    UserError for fewer than two, and for what cannot be judged or paired.
    """
    console = console or Console(stderr=True)
    if len(names) < 2:
        raise UserError("There is nothing to compare with", fix="Name two or more: --compare A B")
    # Once for all: extractors are large, and a reference that is missing should not stop the second subject.
    opened = (against or Against()).opened()
    # The same captions for every model, or their images are no pairs.
    captions: Captions | None = None
    if prompts is not None:
        captions = from_file(prompts, None, settings.seed)
    elif trained is not None:
        captions = held_out.from_store(trained, settings.captions, settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    judged: list[_Judged] = []
    for number, name in enumerate(names, 1):
        console.print(f"{number} of {len(names)}: {name}", highlight=False, markup=False, soft_wrap=True)
        folder = out / f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '-', shown_name(name))}"
        if is_image_folder(Path(name)):
            judged.append(_folder(name, folder, settings, console, opened))
        else:
            judged.append(_model(name, folder, settings, console, opened, captions))
    # Everything is a difference from the first.
    first = judged[0]
    subjects = [Subject(first.name, first.folder, first.distributions, ())]
    for other in judged[1:]:
        found = differences(first.rows, other.rows, other.name)
        subjects.append(Subject(other.name, other.folder, other.distributions, found))
    comparison = Comparison(tuple(subjects), DEFINITIONS)
    _write_pages(comparison, judged, out)
    write_metrics(comparison, out / "metrics.json")
    _say(console, comparison, out)
    return out / "metrics.json"


def _model(
    name: str, folder: Path, settings: EvaluationSettings, console: Console, opened: Opened, captions: Captions | None
) -> _Judged:
    found = evaluate_opened(name, folder, settings, console, Own(captions=captions), opened)
    rows = read_evaluation_rows(folder)
    # Only images that the page may show are kept: a dozen models' images would fill the memory.
    shown = {row.key for row in _shown(rows)}
    images = {key: image for key, image in images_by_key(found.gallery, found.light).items() if key in shown}
    set_metrics = found.metrics.image_set
    return _Judged(shown_name(name), folder.name, rows, images, set_metrics.distributions if set_metrics else ())


def _folder(name: str, folder: Path, settings: EvaluationSettings, console: Console, opened: Opened) -> _Judged:
    metrics = judge_folder(Path(name), folder, opened, settings.seed, console)
    rows, images = read_evaluation_rows(folder), open_folder(Path(name))
    shown = {row.text for row in _shown(rows)}
    kept: dict[Key, ImageSource] = {
        ("captions", one, 0): images[place] for place, one in enumerate(images.names) if one in shown
    }
    return _Judged(shown_name(name), folder.name, rows, kept, metrics.image_set.distributions)


def shown_name(name: str) -> str:
    """A model or folder as a report names it: the last parts of its path, nothing of the machine."""
    path = Path(name)
    if not path.exists():
        return name
    whole = path.resolve()
    return f"{whole.parent.name}/{whole.name}" if whole.name == "model" else whole.name


def _shown(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Some of each set, in turns of its kinds of numbers: black, white, other colours, dark, bright, captions."""
    kinds: dict[tuple[str, ...], list[EvaluationRow]] = {}
    for row in rows:
        kinds.setdefault((row.set, *row.values), []).append(row)
    # Evenly from each kind, or the probe's many rows would leave no room for captions.
    each = max(1, SHOWN // max(1, len(kinds)))
    return [row for some in kinds.values() for row in some[:each]][: max(SHOWN, len(kinds))]


def _write_pages(comparison: Comparison, judged: Sequence[_Judged], out: Path) -> None:
    """`samples.png`, a row for each that is compared, and `report.html`."""
    keys = [key for key in judged[0].images if all(key in one.images for one in judged)]
    rows = [[Image.fromarray(one.images[key]) for key in keys] for one in judged]
    # The sheet has a row for each subject; the page a line for each prompt, and on it an image of each subject.
    if keys:
        flat, labels = [image for row in rows for image in row], [key[1] for _ in judged for key in keys]
        sheet(flat, labels, columns=len(keys), row_titles=[one.name for one in judged]).save(out / "samples.png")
    tiles = [(key[1], [(one.name, row[place]) for one, row in zip(judged, rows, strict=True)])
                for place, key in enumerate(keys)]  # fmt: skip
    page = page_environment().get_template("evaluation_compare.html.j2").render(found=comparison, images=tiles)
    (out / "report.html").write_text(page, encoding="utf-8")


def _say(console: Console, found: Comparison, out: Path) -> None:
    for subject in found.subjects[1:]:
        for one in subject.differences:
            low, high = one.difference.ci95
            change = f"{one.difference.mean:+.4g} [{low:+.4g}, {high:+.4g}]"
            said = f"{one.first:.4g} to {one.other:.4g}, difference {change}, {one.pairs} pairs"
            line = f"{subject.name}: {one.number}: {said}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
