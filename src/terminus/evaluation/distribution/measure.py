"""Every distance of a drawn set from a reference set, on one extractor's features, with what each depends on."""

from __future__ import annotations

from dataclasses import dataclass

from terminus.errors import UserError
from terminus.evaluation.distribution.extractors import Extractor
from terminus.evaluation.distribution.frechet import Features, fit_gaussian, frechet_distance
from terminus.evaluation.distribution.manifold import Manifold, measure_manifold
from terminus.evaluation.distribution.mmd import KernelDistance, cmmd, kid

DEFINITIONS = {
    "frechet": "Fréchet distance of Gaussians fitted to the features; on Inception's it is FID. It falls with n, so "
    "that only sets of the same sizes compare",
    "kid": "unbiased MMD² with the kernel (x·y / features + 1)³; on Inception's features it is KID as published. It "
    "may be below 0",
    "cmmd": "1000 × MMD² with a Gaussian kernel of sigma 10 on features of length 1, the biased estimate as published; "
    "CMMD on CLIP ViT-L/14-336",
    "precision, recall, density, coverage": "shares of images within the other set's manifold, by the distance to the "
    "5th neighbour; precision and density say how real the drawn images are, recall and coverage how varied",
}


@dataclass(frozen=True)
class Distribution:
    """A drawn set against a reference set."""

    extractor: str
    kind: str
    fingerprint: str
    """Of the extractor's weights."""
    preparation: str
    features: int
    drawn: int
    """Images."""
    reference: int
    """Images."""
    frechet: float
    kid: KernelDistance
    cmmd: float | None
    """Null where features have no length 1."""
    manifold: Manifold | None
    """Null for sets of no more images than neighbours."""


def measure_distribution(extractor: Extractor, drawn: Features, reference: Features, seed: int = 0) -> Distribution:
    """UserError for a set of fewer than two images, which has no spread."""
    for what, rows in (("drawn images", drawn), ("reference images", reference)):
        if len(rows) < 2:
            raise UserError(
                f"There is {len(rows)} image among the {what}",
                where=extractor.name,
                rule="A distance of distributions compares how images vary, so each set needs at least 2, and "
                "thousands for numbers like those that are published",
                fix="Give more images, or leave the reference out",
            )
    return Distribution(
        extractor=extractor.name,
        kind=extractor.kind,
        fingerprint=extractor.fingerprint,
        preparation=extractor.preparation,
        features=drawn.shape[1],
        drawn=len(drawn),
        reference=len(reference),
        frechet=frechet_distance(fit_gaussian(drawn), fit_gaussian(reference)),
        kid=kid(drawn, reference, seed),
        cmmd=cmmd(drawn, reference) if extractor.unit else None,
        manifold=measure_manifold(drawn, reference),
    )
