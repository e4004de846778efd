"""Feature extractors by name: `nano`, a folder or hub id of CLIP or DINO, a file of FID's Inception.

Every number of a distribution depends on the network and on how images were resized for it; an extractor says both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from terminus import runtime
from terminus.errors import UserError
from terminus.evaluation.captions import ImageSource
from terminus.evaluation.distribution.frechet import Features
from terminus.evaluation.fingerprint import model_fingerprint
from terminus.model.components import load_text_encoders
from terminus.model.feature_encoders import CLIP, EncoderInput, load_feature_encoder
from terminus.model.inception import SIDE, load_inception
from terminus.model.naming import SHIPPED
from terminus.model.text_encoders import load_vision

BATCH = 32
NANO = "nano"
OWN = "nano's own vision encoder"


@dataclass(frozen=True)
class Extractor:
    """A network that turns images, and captions where it can, into rows of features."""

    name: str
    """As a report names it."""
    kind: str
    """"Inception", "CLIP", "DINO" or "nano"."""
    fingerprint: str
    """16 hex digits of its weights."""
    preparation: str
    """How images are resized for it."""
    unit: bool
    """Whether rows have length 1: where cosine is the measure that the network was trained with."""
    see: Callable[[Sequence[ImageSource]], Float[Tensor, "batch width"]]
    read: Callable[[Sequence[str]], Float[Tensor, "batch width"]] | None = None
    """Of captions, in the same space; None without a text half."""

    def images(self, images: Sequence[ImageSource], advance: Callable[[int], None] = lambda count: None) -> Features:
        """One row per image, float32; UserError where a network gives NaN or infinity."""
        parts: list[np.ndarray] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            parts.append(self._rows(self.see(batch), start))
            advance(len(batch))
        return np.concatenate(parts)

    def captions(self, captions: Sequence[str]) -> Features:
        """One row per caption; the extractor must be able to read."""
        assert self.read is not None, "the caller has looked"
        parts = [self.read(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH)]
        return self._rows(torch.cat(parts), 0)

    def _rows(self, features: Tensor, first: int) -> Features:
        rows = features.float()
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"The features of {len(bad)} images hold NaN or infinity, the first is image {first + bad[0] + 1}",
                where=self.name,
                rule="A distance of distributions needs a finite row for each image",
                fix="Use other weights for the extractor, or leave it out",
            )
        return (normalize(rows, dim=1) if self.unit else rows).cpu().numpy()


def load_extractor(name: str) -> Extractor:
    """The extractor that a name stands for; UserError for what is not here or of another kind."""
    device = runtime.pick_device()
    if name == NANO:
        return _nano(device)
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        return _inception(path, device)
    encoder = load_feature_encoder(name)
    network = encoder.network.to(device)
    del network
    return Extractor(
        name=f"{encoder.kind} ({path.name if path.is_dir() else name})",
        kind=encoder.kind,
        fingerprint=model_fingerprint(encoder.folder),
        preparation=encoder.scaling.words,
        unit=encoder.kind == CLIP,
        see=lambda images: encoder.see(images, device),
        read=None if encoder.tokenizer is None else lambda captions: encoder.read(captions, device),
    )


def _inception(path: Path, device: torch.device) -> Extractor:
    if not path.is_file():
        raise UserError("No weights are here", where=str(path), rule="A .safetensors file holds FID's Inception")
    network = load_inception(path).to(device)

    @torch.no_grad()
    def see(images: Sequence[ImageSource]) -> Tensor:
        # Images of one set may differ in size, and the network resizes each by its own rule.
        rows = (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device) for image in images)
        return torch.cat([cast(Tensor, network(row)) for row in rows])

    return Extractor(
        name=f"Inception ({path.name})",
        kind="Inception",
        fingerprint=model_fingerprint(path),
        preparation=f"to {SIDE}×{SIDE} pixels by TensorFlow 1's bilinear rule, as torch-fidelity and pytorch-fid do",
        unit=False,
        see=see,
    )


def _nano(device: torch.device) -> Extractor:
    """The shipped model's own vision encoder and text encoder 2: offline, small, and no network of the literature."""
    folder = SHIPPED["nano"]
    vision, text = load_vision(folder / "vision").to(device), load_text_encoders(folder)  # pyright: ignore[reportArgumentType]
    text.text_encoder_1.to(device)  # pyright: ignore[reportArgumentType]
    text.text_encoder_2.to(device)  # pyright: ignore[reportArgumentType]
    side = cast(int, vision.config.image_size)
    scaling = EncoderInput(side, side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    @torch.no_grad()
    def see(images: Sequence[ImageSource]) -> Tensor:
        return cast(Tensor, vision(pixel_values=scaling.prepared(images).to(device)).image_embeds)

    @torch.no_grad()
    def read(captions: Sequence[str]) -> Tensor:
        return text.encode(captions).pooled

    return Extractor(OWN, NANO, model_fingerprint(folder / "vision"), scaling.words, True, see, read)
