"""What a set of images is measured against: a reference, training images, and the networks that see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terminus.conditioning import Size
from terminus.errors import UserError
from terminus.evaluation.atoms import JudgeEndpoint
from terminus.evaluation.bias_file import BiasQuestions
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution.extractors import NANO, Extractor, load_extractor
from terminus.evaluation.image_folder import ImageFolder, check_sizes, open_folder
from terminus.evaluation.image_set import ImageSet
from terminus.evaluation.measure import HELD_OUT_IMAGES, PROBE_IMAGES, EvaluationImages
from terminus.evaluation.memorised import TrainedImages
from terminus.evaluation.trained import TrainedOn
from terminus.evaluation.training_images import training_images


@dataclass(frozen=True)
class Opened:
    """Folders that were looked through and networks that were loaded."""

    reference: ImageFolder | None
    training: TrainedImages | None
    extractors: Sequence[Extractor]
    any_size: bool
    judge: JudgeEndpoint | None = None
    bias: BiasQuestions | None = None

    def check_sizes(self, images: Sequence[ImageSource]) -> None:
        """UserError if the reference's images are of other sizes and nobody said that this is meant."""
        if self.reference is not None and not self.any_size:
            sizes = images.sizes if isinstance(images, ImageFolder) else [Size(*one.shape[:2]) for one in images]
            check_sizes(sizes, self.reference.sizes, str(self.reference.path))


@dataclass(frozen=True)
class Against:
    """Options of `terminus evaluate`."""

    reference: Path | None = None
    """A folder of real images; None is what the run held out, where it is known."""
    training: Path | None = None
    """A folder of the images that were trained on; None is the run's store, where it is known."""
    features: tuple[str, ...] = (NANO,)
    """Names of extractors."""
    any_size: bool = False
    """Whether the reference may be of other sizes."""
    judge: JudgeEndpoint | None = None
    """A server that answers questions about images; None asks none."""
    bias: BiasQuestions | None = None
    """What is asked of a model about what prompts leave open."""

    def opened(self) -> Opened:
        """UserError for folders without images and for networks that are not here."""
        reference = None if self.reference is None else open_folder(self.reference, least=2)
        training = None
        if self.training is not None:
            folder = open_folder(self.training, least=2)
            training = TrainedImages(folder, len(folder), folder.path.name)
        # A name that was given twice is loaded once.
        extractors = [load_extractor(name) for name in dict.fromkeys(self.features)]
        if self.bias is not None and not any(one.read for one in extractors):
            raise UserError(
                "No network of --features can read",
                rule="--bias chooses between captions, and needs a network with a text half",
                fix="Add --features nano, or a folder or hub id of CLIP",
            )
        if self.judge is not None:
            self.judge.asking().close()  # known before anything is drawn
        return Opened(reference, training, extractors, self.any_size, self.judge, self.bias)


def of_folder(images: ImageFolder, opened: Opened) -> ImageSet:
    """The images of a folder with their captions."""
    opened.check_sizes(images)
    captions = images.captions if any(images.captions) else ()
    name = None if opened.reference is None else opened.reference.path.name
    return ImageSet(images, captions, opened.reference, name, training=opened.training)


def of_model(gallery: EvaluationImages, opened: Opened, trained: TrainedOn | None, seed: int) -> ImageSet:
    """The images that a model drew for its captions, or for the contrast probe where it was asked for nothing else."""
    # A folder that was named comes before the run's own store.
    training = opened.training
    if training is None and trained is not None:
        training = training_images(trained, seed)
    captions, reference = gallery.captions, opened.reference
    texts = [one.text for one in (gallery.prompts if captions is None else captions.items)]
    images: Sequence[ImageSource] = list(gallery.own.probe) if captions is None else gallery.own.captions
    # A reference that was named comes before what the run held out.
    if reference is not None:
        opened.check_sizes(images)
        return ImageSet(images, texts, reference, reference.path.name, training=training)
    real: Sequence[ImageSource] | None = captions.images or None if captions is not None else None
    name = HELD_OUT_IMAGES
    if captions is None and gallery.real is not None and gallery.probe_is_data:
        real, name = list(gallery.real), PROBE_IMAGES
    # One image has no distribution; a run may hold no more out.
    if real is None or len(real) < 2:
        return ImageSet(images, texts, training=training)
    return ImageSet(images, texts, real, name, paired=True, training=training)
