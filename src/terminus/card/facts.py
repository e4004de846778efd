"""Everything that a card may say of a run, read from its folder; nothing is computed that the files do not hold.

Imports no torch: a card can be written where nothing can be trained.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from terminus.card.documents import Document, read_document, read_log, read_yaml
from terminus.card.energy import Energy, energy_of
from terminus.card.licences import LICENCES
from terminus.errors import UserError
from terminus.evaluation.fingerprint import model_fingerprint

RESTRICTIONS = Path(__file__).parent.parent / "assets" / "licences"
"""Use restrictions by licence id."""
LAST = 100
"""Steps that the final loss is a mean of."""


@dataclass(frozen=True)
class Log:
    """The numbers that the card takes from `log.jsonl`."""

    steps: int
    final_loss: float | None
    """Mean weighted loss of the last `LAST` steps."""
    final_error: float | None
    lowest_rate: float | None
    highest_rate: float | None
    """Range of the learning rates that were really used."""
    slow_images_per_second: float | None
    """5th percentile over steps."""


@dataclass(frozen=True)
class GallerySample:
    """One image for the hub's gallery."""

    file: str
    """Path of the image, relative to the card."""
    prompt: str


@dataclass(frozen=True)
class Licence:
    """The licence of the finished model."""

    id: str
    """One that the Hub knows; "other" for what a parent calls by another name."""
    name: str
    """The licence as it was stated."""
    inherited: bool
    """Whether it is the parent's, and the recipe states none."""


GENERAL_PURPOSE = 1e23
"""FLOP above which the European Commission's guidelines speak of a general-purpose model (July 2025, point 17)."""


@dataclass(frozen=True)
class Compute:
    """Floating-point operations of training, and how they compare; what follows from that is not for a card to say."""

    flop: float
    per_image: float
    ratio: float
    """To `GENERAL_PURPOSE`."""
    third: float
    """To a third of it: the guidelines' measure for a modified model whose original's compute is not known."""


@dataclass(frozen=True)
class FinishedRun:
    """The records of a finished run, from which its card is written."""

    folder: Path
    recipe: Document
    facts: Document
    data: Document
    report: Document
    """Report of the data store; empty if it is not here."""
    evaluation: Path
    """The folder that `terminus evaluate` wrote: `evaluation` in the run's, or the run's own."""
    metrics: Document
    """Its metrics.json; empty if there is none."""
    record: Document
    """`model/terminus.json`."""
    scheduler: Document
    log: Log
    energy: Energy
    compute: Compute | None
    """None where nobody counted it."""
    licence: Licence | None
    """None where neither the recipe nor the model that training began from states one."""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.recipe.text("run.name") or self.folder.resolve().name

    @property
    def base_model(self) -> str | None:
        """The hub id that training began from, if it was one."""
        start = self.recipe.text("model.start")
        return start if self.facts.text("begun_from") == "hub" else None

    @property
    def embedded(self) -> bool:
        """Whether all of the data are the embedded drawings, whose captions are English."""
        sources = list(self.recipe.list("data.sources"))
        return bool(sources) and all(source.text("kind") == "embedded" for source in sources)

    @property
    def zero_terminal_velocity(self) -> bool:
        """Configuration of the scheduler."""
        scheduler = self.scheduler
        velocity = scheduler.text("prediction_type") == "v_prediction"
        return velocity and scheduler.flag("rescale_betas_zero_snr") is True

    @property
    def joules_per_image(self) -> float | None:
        """Energy for each image of training."""
        kwh, images = self.energy.kwh, self.facts.number("images_seen")
        return None if kwh is None or not images else kwh * 3.6e6 / images

    @property
    def is_flow(self) -> bool:
        """Whether it is a rectified flow, by the configuration of the scheduler that we write."""
        return self.scheduler.text("prediction_type") == "flow_prediction"

    @property
    def finished(self) -> str | None:
        """UTC date, YYYY-MM-DD."""
        stamp = self.facts.text("finished") or ""
        return stamp[:10] if re.match(r"\d{4}-\d{2}-\d{2}", stamp) else None

    @property
    def illustrated(self) -> bool:
        """Whether the evaluation's images are of subjects of this model: the probe's are where its data have them."""
        return bool(self.metrics.at("captions")) or (self.embedded and self.metrics.text("prompts.kind") == "embedded")

    @property
    def restrictions(self) -> str | None:
        """The use restrictions of its licence in full, as Markdown; None for one that has none, or is not known."""
        path = RESTRICTIONS / f"{self.licence.id}.md" if self.licence else None
        return path.read_text(encoding="utf-8").strip() if path is not None and path.is_file() else None

    @property
    def samples(self) -> list[GallerySample]:
        """The single images of the evaluation that are still there, if they are of its subjects."""
        found: list[GallerySample] = []
        for sample in self.metrics.list("samples") if self.illustrated else ():
            file, prompt = sample.text("file") or "", sample.text("prompt")
            if prompt and re.fullmatch(r"samples/\d+\.png", file) and (self.evaluation / file).is_file():
                found.append(GallerySample(self.beside(self.evaluation / file), prompt))
        return found

    @property
    def sheet(self) -> str | None:
        """The sheet of the evaluation's images, if it is there and of its subjects."""
        path = self.evaluation / "samples.png"
        return self.beside(path) if self.illustrated and path.is_file() else None

    @property
    def page(self) -> str:
        """Path of the evaluation's report, relative to the card."""
        return self.beside(self.evaluation / "report.html")

    def beside(self, path: Path) -> str:
        """A path as the card, which lies in the run's folder, must write it."""
        return path.relative_to(self.folder).as_posix()


def read_run(folder: Path) -> FinishedRun:
    """UserError if this is no run, an unfinished one, or one whose files contradict each other."""
    recipe = read_yaml(folder / "recipe.yaml")
    if not recipe:
        raise UserError(
            "This is not the folder of a run: it has no recipe.yaml",
            where=str(folder),
            fix="Give the run.dir of a recipe that was trained",
        )
    kind = recipe.text("objective.kind") or "diffusion"
    if kind != "diffusion":
        raise UserError(
            f"This run trained a part of a model ({kind})",
            where=str(folder),
            rule="A card describes a whole model, the result of a run with objective.kind diffusion",
        )
    facts = read_document(folder / "facts.json")
    if not facts or not (folder / "model" / "model_index.json").is_file():
        raise UserError(
            "This run is not finished: facts.json or the model folder is missing",
            where=str(folder),
            rule="Both are written at the end of training",
            fix="Run the same `terminus train` command again; it continues",
        )
    evaluation = folder / "evaluation"
    evaluation = evaluation if (evaluation / "metrics.json").is_file() else folder
    metrics = read_document(evaluation / "metrics.json")
    _check_metrics(folder, evaluation, metrics)
    record = read_document(folder / "model" / "terminus.json")
    return FinishedRun(
        folder=folder,
        recipe=recipe,
        facts=facts,
        data=read_document(folder / "data.json"),
        report=_report(recipe),
        evaluation=evaluation,
        metrics=metrics,
        record=record,
        scheduler=read_document(folder / "model" / "scheduler" / "scheduler_config.json"),
        log=_log(folder / "log.jsonl"),
        energy=energy_of(recipe, facts),
        compute=_compute(facts),
        licence=_licence(folder, recipe, record),
    )


def _check_metrics(folder: Path, evaluation: Path, metrics: Document) -> None:
    if not metrics:
        return
    have, measured = model_fingerprint(folder / "model"), metrics.text("model.fingerprint")
    if have != measured:
        raise UserError(
            f"These metrics were measured on other weights ({measured}); the run's model is {have}",
            where=str(evaluation / "metrics.json"),
            rule="A card never shows the numbers of another model",
            fix=f"Run `terminus evaluate {folder / 'model'} --out {evaluation}` again, or remove the file",
        )


def _report(recipe: Document) -> Document:
    store = recipe.text("data.store") or ""
    return Document() if not store or "://" in store else read_document(Path(store) / "report.json")


def _log(path: Path) -> Log:
    losses: list[float] = []
    errors: list[float] = []
    rates: list[float] = []
    speeds: list[float] = []
    columns = (("loss", losses), ("error", errors), ("learning_rate", rates), ("images_per_second", speeds))
    for row in read_log(path):
        for key, values in columns:
            value = row.number(key)
            if value is not None:
                values.append(value)
    return Log(
        steps=len(losses),
        final_loss=statistics.fmean(losses[-LAST:]) if losses else None,
        final_error=statistics.fmean(errors[-LAST:]) if errors else None,
        lowest_rate=min(rates, default=None),
        highest_rate=max(rates, default=None),
        slow_images_per_second=statistics.quantiles(speeds, n=20)[0] if len(speeds) > 1 else None,
    )


def _compute(facts: Document) -> Compute | None:
    each, images = facts.number("flop_per_image"), facts.number("images_seen")
    if not each or images is None:
        return None
    flop = each * images
    return Compute(flop, each, flop / GENERAL_PURPOSE, 3 * flop / GENERAL_PURPOSE)


def _licence(folder: Path, recipe: Document, record: Document) -> Licence | None:
    stated, parent = recipe.text("run.licence"), record.text("licence")
    if stated is None and parent is not None:
        return Licence(parent if parent in LICENCES else "other", parent, inherited=True)
    if stated is None:
        return None
    if stated not in LICENCES:
        raise UserError(
            f"run.licence is {json.dumps(stated)}",
            where=str(folder / "recipe.yaml"),
            rule="The Hugging Face Hub knows a fixed list of licence ids, such as apache-2.0, mit or openrail++",
            fix="Set run.licence in the recipe, and run the same `terminus train` command again",
        )
    return Licence(stated, stated, inherited=False)
