"""`terminus evaluate FOLDER`: a folder of images judged, whatever drew them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from terminus.evaluation import image_set, memorised
from terminus.evaluation.against import Against, Opened, of_folder
from terminus.evaluation.distribution import measure as distances
from terminus.evaluation.image_folder import open_folder
from terminus.evaluation.memorised import write_neighbours
from terminus.evaluation.metrics import FolderMetrics, write_metrics
from terminus.evaluation.rows import folder_rows, write_evaluation_rows
from terminus.evaluation.set_report import write_folder_report, write_folder_sheet
from terminus.evaluation.summary import say_set

DEFINITIONS = {**image_set.DEFINITIONS, **distances.DEFINITIONS, **memorised.DEFINITIONS}


def evaluate_folder(
    folder: Path, out: Path, against: Against | None = None, seed: int = 0, console: Console | None = None
) -> Path:
    """Measures the images of `folder` into the folder `out`; returns the path of `metrics.json`.

    UserError for a folder without images, a reference or training folder without two, sizes that do not compare, and
    networks that are not here.
    """
    console = console or Console(stderr=True)
    metrics = judge_folder(folder, out, (against or Against()).opened(), seed, console)
    say_set(console, metrics.image_set, out)
    return out / "metrics.json"


def judge_folder(folder: Path, out: Path, opened: Opened, seed: int, console: Console) -> FolderMetrics:
    """As `evaluate_folder`, against what is open already."""
    images = open_folder(folder)
    subject = of_folder(images, opened)
    out.mkdir(parents=True, exist_ok=True)
    found = image_set.measure_set(subject, opened.extractors, console, seed)
    metrics = FolderMetrics(images.path.resolve().name, images.unread, found.metrics, DEFINITIONS)
    # Pages first, metrics.json last: where it is, everything is.
    write_folder_sheet(images, out)
    if found.metrics.memorised is not None and subject.training is not None:
        names = images.names
        write_neighbours(
            found.metrics.memorised, images, subject.training, out / "neighbours.png", lambda row: names[row]
        )
    write_evaluation_rows(folder_rows(images.names, found), out)
    write_folder_report(metrics, subject, out)
    write_metrics(metrics, out / "metrics.json")
    return metrics
