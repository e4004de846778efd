"""What `--safety` asks for, and what is told of an image that was hidden: plain data, without torch.

Nothing is looked at unless whoever runs the server names a classifier. Nothing is hidden silently: in place of the
image stands a plain one that says so, with label, score and threshold, in the file, in the answer and on the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from terminus.config.errors import did_you_mean
from terminus.errors import UserError
from terminus.model.naming import at_home

_USUAL = ("nsfw", "unsafe", "porn", "hentai", "explicit")
"""Labels that are hidden where none is named, as published classifiers call them."""
_THRESHOLD = 0.5
_RULE = (
    "A classifier is a folder as transformers writes it: config.json with id2label, preprocessor_config.json, "
    "safetensors"
)
_FORM = "The form is FOLDER, or FOLDER#LABEL=THRESHOLD with a comma between several"


@dataclass(frozen=True)
class Hidden:
    """Why an image is not shown."""

    label: str
    score: float
    """The classifier's probability of that label, 0..1."""
    threshold: float

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"Hidden by this server's safety filter: {self.label} {self.score:.2f}, the threshold is {self.threshold:g}"
        )

    def record(self) -> dict[str, Any]:
        """For programs, and for the file that stands in the image's place."""
        return {"hidden": asdict(self)}


def hidden_in(metadata: object) -> Hidden | None:
    """The reason that the metadata of a file tells; None for an image that was not hidden."""
    said = cast("dict[str, Any]", metadata).get("hidden") if isinstance(metadata, dict) else None
    if not isinstance(said, dict):
        return None
    found = cast("dict[str, Any]", said)
    return Hidden(str(found.get("label")), float(found.get("score", 0)), float(found.get("threshold", 0)))


@dataclass(frozen=True)
class SafetyRules:
    """A classifier's folder, and the probability from which each label hides an image."""

    folder: Path
    thresholds: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> SafetyRules:
        """From "FOLDER" or "FOLDER#LABEL=THRESHOLD,..."; UserError for a folder or a label that is none."""
        name, _, chosen = text.partition("#")
        folder = at_home(name)
        labels = _labels(folder)
        wanted = dict(_threshold(part) for part in chosen.split(",")) if chosen else _usual(labels)
        for label in wanted:
            if label not in labels:
                raise UserError(
                    f"The classifier has no label {label!r}", where=str(folder),
                    rule=f"Its labels are {', '.join(labels)}", fix=did_you_mean(label, labels),
                )  # fmt: skip
        if not wanted:
            raise UserError(
                "None of this classifier's labels is usually hidden", where=str(folder),
                rule=f"Its labels are {', '.join(labels)}", fix=f"Name one: --safety {name}#LABEL={_THRESHOLD:g}",
            )  # fmt: skip
        return cls(folder, tuple(wanted.items()))

    def shown(self) -> dict[str, Any]:
        """For clients: what is hidden here, and by whose judgement."""
        return {"classifier": self.folder.name, "thresholds": dict(self.thresholds)}

    def judge(self, scores: Mapping[str, float]) -> Hidden | None:
        """The label that hides an image with these probabilities, the surest one; None for an image that is shown."""
        over = [(scores[label] - least, label, least) for label, least in self.thresholds if scores[label] >= least]
        if not over:
            return None
        _, label, least = max(over)
        return Hidden(label, scores[label], least)


def _labels(folder: Path) -> list[str]:
    try:
        config: object = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = cast("dict[str, Any]", config)["id2label"].values() if isinstance(config, dict) else []
        labels = [str(name) for name in names]
    except (OSError, ValueError, RecursionError, LookupError, AttributeError) as error:
        raise UserError("This is no image classifier", where=str(folder), rule=_RULE) from error
    if not labels or not any(folder.glob("*.safetensors")):
        raise UserError("This classifier has no labels, or no weights in safetensors", where=str(folder), rule=_RULE)
    return labels


def _usual(labels: list[str]) -> dict[str, float]:
    return {label: _THRESHOLD for label in labels if label.lower() in _USUAL}


def _threshold(part: str) -> tuple[str, float]:
    label, _, number = part.strip().partition("=")
    try:
        least = float(number or _THRESHOLD)
    except ValueError:
        raise UserError(f"--safety ...#{part.strip()[:80]} cannot be read", rule=_FORM) from None
    if not 0 < least <= 1:
        raise UserError(f"The threshold of {label} is {least:g}", rule="A threshold is above 0 and at most 1")
    return label, least
