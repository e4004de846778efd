"""Scores from an image classifier, for images whose source gives none: one of the transformers library, or NudeNet.

Loaded only where a recipe names one. Weights of transformers are safetensors and the code is the library's own:
nothing that lies beside a model is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from PIL import Image

from terminus.data import nudity
from terminus.data.filters import Classifier
from terminus.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.image_processing_base import BatchFeature


@dataclass(frozen=True)
class _Loaded:
    network: PreTrainedModel
    prepare: object
    labels: dict[str, int]


def check_classifier(classifier: Classifier) -> None:
    """Loads it, so that a wrong model or label is known before the first image. `UserError` says what is wrong."""
    if classifier.model == nudity.NUDENET:
        nudity.detector()
        known = nudity.CLASSES
    else:
        known = tuple(_load(classifier.model).labels)
    unknown = [label for label in classifier.labels if label not in known]
    if unknown:
        raise UserError(
            f"this classifier knows no class named {', '.join(unknown)}",
            where=f"data.filters.classifiers: {classifier.model}",
            rule=f"Its classes are {', '.join(sorted(known)[:20])}",
            fix="Correct `labels`.",
        )


@torch.inference_mode()
def class_score(image: Image.Image, classifier: Classifier) -> float:
    """Sum of the probabilities of the classes that count, 0..1; of NudeNet the highest score of a detection."""
    if classifier.model == nudity.NUDENET:
        return nudity.nudity_score(image, classifier.labels)
    loaded = _load(classifier.model)
    prepare = loaded.prepare
    assert callable(prepare)
    inputs = cast("BatchFeature", prepare(image, return_tensors="pt"))
    logits = cast(torch.Tensor, loaded.network(**inputs).logits)[0].double()
    wanted = [loaded.labels[label] for label in classifier.labels]
    return min(1.0, float(logits.softmax(0)[wanted].sum()))


@lru_cache(maxsize=4)
def _load(model: str) -> _Loaded:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours are on the same terminal
    local = Path(model).exists()
    try:
        network = AutoModelForImageClassification.from_pretrained(
            model, use_safetensors=True, trust_remote_code=False, local_files_only=local
        )
        prepare = AutoImageProcessor.from_pretrained(
            model, backend="pil", trust_remote_code=False, local_files_only=local
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no image classifier can be loaded from here ({str(error).splitlines()[0]})",
            where=f"data.filters.classifiers: {model}",
            rule="It is a folder or hub id of a transformers image classifier: config.json, "
            "preprocessor_config.json and model.safetensors",
            fix="Correct `model`.",
        ) from None
    labels = {str(label): int(index) for index, label in network.config.id2label.items()}
    return _Loaded(network.eval(), prepare, labels)
