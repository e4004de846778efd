"""The findings of `terminus inspect`, a class per kind of thing; fields are the keys of `--json`, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from terminus.model.detect import Evidence
from terminus.model.lineage import Merge
from terminus.model.record import Prediction

Scalar = str | int | float | bool


@dataclass(frozen=True)
class NetworkFinding:
    """The tensors of one network."""

    parameters: int
    dtypes: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Hashes:
    """SHA-256, in hex."""

    sha256: str
    """SHA-256 of the file; in a folder of the UNet's file or files, one after the other."""
    model_hash: str
    """Its first 10 digits: what galleries and A1111 call the model."""
    tensors_sha256: str
    """SHA-256 of the bytes behind the header, which no change of metadata changes."""
    stated: str | None = None
    """Whether `modelspec.hash_sha256` is the hash of the tensors: "right", "wrong", or None where it says nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """A model: a diffusers folder, or one file in the layout of Stability's own."""

    kind: Literal["model folder", "single file"]
    path: str
    architecture: str
    task: str
    prediction: str
    zero_terminal: bool
    spacing: str | None
    """Spacing of the timesteps, as the scheduler's configuration names it."""
    evidence: tuple[Evidence, ...]
    conflicts: tuple[str, ...]
    native_pixels: int | None
    components: Mapping[str, NetworkFinding]
    missing: tuple[str, ...]
    """Networks of SDXL that are not here."""
    ema: bool
    """Whether averaged weights lie beside the plain ones."""
    hashes: Hashes
    licence: str | None
    parents: tuple[str, ...]
    merges: tuple[Merge, ...]
    """Merges that it, or what it began from, came out of; oldest first."""
    weighting: Mapping[str, Scalar]
    images_seen: int | None
    caption_dropout: float | None
    about: Mapping[str, str]
    """Title, author, description, trigger words, ... of `modelspec.*`."""
    other_metadata: tuple[str, ...]
    """Keys of the other metadata."""


@dataclass(frozen=True)
class AdapterFinding:
    """A LoRA or one of its relatives."""

    kind: Literal["adapter"]
    path: str
    method: tuple[str, ...]
    naming: str
    """The program whose key layout it is."""
    modules: Mapping[str, int]
    """Number of modules that are changed, by network."""
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    prediction: str | None
    """Prediction of the model that it was trained on, where the metadata says so."""
    zero_terminal: bool | None
    evidence: tuple[Evidence, ...]
    base_model: str | None
    merges: tuple[Merge, ...]
    training: Mapping[str, str]
    tags: tuple[str, ...]
    """The most frequent tags of its captions."""
    tensors: NetworkFinding
    hashes: Hashes
    about: Mapping[str, str]
    other_metadata: tuple[str, ...]


@dataclass(frozen=True)
class Tensors:
    """A safetensors file that is neither model nor adapter: a single network, an embedding, or unknown."""

    kind: Literal["tensors"]
    path: str
    what: str
    tensors: NetworkFinding
    names: tuple[str, ...]
    """The first few names of tensors."""
    hashes: Hashes
    about: Mapping[str, str]
    other_metadata: tuple[str, ...]


@dataclass(frozen=True)
class RunFinding:
    """The folder of a training run, finished or not."""

    kind: Literal["run"]
    path: str
    name: str | None
    finished: str | None
    """UTC; None while it can be continued."""
    start: str | None
    images_seen: int | None
    images_asked: int | None
    last_step: Mapping[str, Scalar]
    """The last row of `log.jsonl`."""
    checkpoints: tuple[str, ...]
    data_version: int | None
    model: Checkpoint | None


@dataclass(frozen=True)
class ImageFinding:
    """An image, and what it says of its making."""

    kind: Literal["image"]
    path: str
    made_by: str
    facts: Mapping[str, str]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Probe:
    """A network's answers to pure noise (`inspection.probe`)."""

    kind: Literal["probe"]
    path: str
    looks_like: str
    slope: float
    """Slope of the answer on the noise: 1 for epsilon, near 0 for velocity."""
    slopes: tuple[float, ...]
    """The slope for each seed."""
    leak: float | None
    """How much of a brightness hidden in the noise a velocity network answers with, 0 to 1."""
    prediction: Prediction | None
    """None where the answers look like neither."""
    zero_terminal: bool | None
    """None where it cannot be told."""
    conflicts: tuple[str, ...]
    """Where the answers contradict the labels."""


Finding = Checkpoint | AdapterFinding | Tensors | RunFinding | ImageFinding
