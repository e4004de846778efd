"""The models of a merge: read, hashed, and refused where they are not of one kind.

Weights are numbers of one architecture that answers one question. Adding what predicts noise to what predicts velocity
gives a network that predicts neither, and no error ever says so; so differences are told before a byte is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from terminus.errors import UserError
from terminus.merging.arguments import Weighted
from terminus.model.convert import read_checkpoint
from terminus.model.lineage import MergedModel
from terminus.model.naming import SHIPPED
from terminus.model.parts import NETWORKS, TOKENIZERS, CheckpointParts
from terminus.model.record import DECISIONS, Schedule
from terminus.model.weights import model_name, resolve, weight_files
from terminus.sampling.files import sha256

_PASSIVE = (
    "in_channels",
    "sample_size",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "force_upcast",
    "name_or_path",
)
"""Settings of a `config.json` that change nothing that the network computes, or are told by its shapes."""
_LATENTS = ("scaling_factor", "shift_factor", "latent_channels", "latents_mean", "latents_std")
"""Settings of a VAE that decide what latents its UNet was trained on."""
_WIDER = "conv_in.weight"
"""The layer that an inpainting UNet has more inputs of."""


@dataclass(frozen=True)
class Source:
    """One model that is read."""

    name: str
    sha256: str
    parts: CheckpointParts

    @property
    def schedule(self) -> Schedule:
        return self.parts.record.schedule

    def merged(self, weight: float) -> MergedModel:
        """What the result says of it."""
        return MergedModel(self.name, self.sha256, weight, self.parts.record.parents)


def read_source(model: str) -> Source:
    """Reads a model by its name; its tensors are mapped, its files hashed."""
    path = resolve(model)
    files = [path] if path.is_file() else weight_files(path / "unet", "diffusion_pytorch_model")
    name = model if model in SHIPPED else (path.name if path.is_file() else model_name(path))
    return Source(name, sha256(files), read_checkpoint(model))


def read_sources(models: Iterable[Weighted]) -> list[Source]:
    """All models of a merge, in order."""
    return [read_source(one.model) for one in models]


def agreed_schedule(sources: Sequence[Source], decided: str | None) -> Schedule:
    """The schedule of the result: that of all, or what `--as` says; UserError where they differ and nothing is said."""
    first = sources[0].schedule
    other = next((source for source in sources if source.schedule != first), None)
    if other is None:
        if decided is not None and DECISIONS[decided] != (first.prediction, first.zero_terminal):
            raise UserError(
                f"All of these models are {schedule_name(first)}, and --as says {decided}",
                rule="Merging changes no prediction", fix="Leave out --as",
            )  # fmt: skip
        return first
    if decided is None:
        raise UserError(
            f"These models do not answer the same question: {sources[0].name} is {schedule_name(first)}, "
            f"{other.name} is {schedule_name(other.schedule)}",
            rule="The sum of two such networks predicts neither, and draws grey or noise",
            fix="Merge models of one kind; if you know better, name the result: --as v-ztsnr, v, epsilon or flow",
        )
    # Of one of the models, with its betas or shift: the sum of the others is nothing that could be named.
    kinds = (source.schedule for source in sources)
    meant = [kind for kind in kinds if (kind.prediction, kind.zero_terminal) == DECISIONS[decided]]
    if not meant:
        raise UserError(
            f"None of these models is {decided}, which --as says",
            rule="The result is of the kind of one of the models",
            fix=f"Say which: {', '.join(schedule_name(source.schedule) for source in sources)}",
        )
    return meant[0]


def schedule_name(schedule: Schedule) -> str:
    """A schedule in words."""
    if schedule.prediction == "flow":
        return f"a rectified flow of shift {schedule.shift:g}"
    ends = "zero terminal SNR" if schedule.zero_terminal else "a leaky schedule"
    plain = Schedule(schedule.prediction, zero_terminal=schedule.zero_terminal)
    numbers = f" (betas {schedule.beta_start:g} to {schedule.beta_end:g}, {schedule.timesteps} timesteps)"
    return f"{schedule.prediction} on {ends}{'' if schedule == plain else numbers}"


def check_same_architecture(sources: Sequence[Source], networks: Iterable[str]) -> None:
    """UserError unless these networks of all models have the same layers, settings, vocabularies and latents.

    The first UNet may have more input channels than the others (inpainting): those are its own.
    """
    first = sources[0]
    for other in sources[1:]:
        for network in networks:
            _check_network(network, first, other)
        _check_settings("vae", first, other, first.parts.configs["vae"].keys() - set(_LATENTS))
        for name in TOKENIZERS:
            if first.parts.vocabularies[name].ids != other.parts.vocabularies[name].ids:
                raise _different(first, other, f"the {name} of each has another vocabulary")


def _check_network(network: str, first: Source, other: Source) -> None:
    ours, theirs = first.parts.tensors[network], other.parts.tensors[network]
    if missing := sorted(ours.keys() ^ theirs.keys()):
        owner = first if missing[0] in ours else other
        raise _different(
            first,
            other,
            f"{len(missing)} tensors of the {network} are in one alone, such as {missing[0]} in {owner.name}",
        )
    for name, value in ours.items():
        shape = theirs[name].shape
        wider = name == _WIDER and network == "unet" and value.ndim == 4 and value.shape[1] > shape[1]
        if value.shape != shape and not (wider and value[:, : shape[1]].shape == shape):
            raise _different(first, other, f"{name} of the {network} is {list(value.shape)} and {list(shape)}")
    _check_settings(network, first, other, _PASSIVE)


def _check_settings(network: str, first: Source, other: Source, passive: Collection[str]) -> None:
    """Settings that both state must be the same; one that a program of another age leaves out says nothing."""
    ours, theirs = first.parts.configs[network], other.parts.configs[network]
    for key in sorted((ours.keys() & theirs.keys()) - set(passive)):
        if not key.startswith("_") and _plain(ours[key]) != _plain(theirs[key]):
            raise _different(first, other, f"{key} of the {network} is {ours[key]!r:.80} and {theirs[key]!r:.80}")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _different(first: Source, other: Source, what: str) -> UserError:
    return UserError(
        f"{first.name} and {other.name} are of different architectures: {what}",
        rule="Only weights of the same layers can be added",
        fix="Merge models that were trained from one base",
    )


def merged_networks(blocks: Mapping[str, float]) -> tuple[str, ...]:
    """The networks that are merged: all but the VAE, which is the first's unless `--block vae=...` asks for it."""
    return tuple(name for name in NETWORKS if name != "vae" or blocks.get("vae", 0.0) != 0)
