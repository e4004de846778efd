"""`terminus prepare`: curate, then encode. Both stages only add, and repeating the command adds nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console

from terminus import runtime
from terminus.data.curate import Curated, check_rules, curate
from terminus.data.encode import encode, waiting
from terminus.data.progress import Meter
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError


@dataclass(frozen=True)
class PrepareReport:
    """What one run of `prepare` found and did."""

    store: str
    transform: str
    codec: str | None
    """None if only the first stage ran."""
    candidates: int
    """Equals `kept` plus the sum of `dropped`."""
    kept: int
    added: int
    """How many of the kept are new."""
    revised: int
    """How many of the kept have edited captions."""
    dropped: dict[str, int]
    """By reason, most frequent first."""
    latents_added: int
    images_version: int
    latents_version: int
    rejected_version: int


def prepare(data: DataConfig, model: str | None, console: Console | None = None) -> PrepareReport:
    """Brings the store up to date with the sources; `model` names the codec, None stops before encoding."""
    console = console or Console(stderr=True)
    store = Store(data.store)
    check_rules(data, store)
    with Meter(console, "curate", sum(source.count() for source in data.sources)) as meter:
        curated = curate(data, store, meter.advance)
    codec_id, added = (None, 0) if model is None else _encode(data, store, model, console)
    return _report(data, store, curated, codec_id, added)


def _encode(data: DataConfig, store: Store, model: str, console: Console) -> tuple[str, int]:
    from terminus.model.codec import load_codec

    codec = load_codec(model)
    if data.resolution % codec.factor:
        raise UserError(
            f"data.resolution {data.resolution} is no multiple of {codec.factor}",
            rule=f"the codec of {model} turns {codec.factor}x{codec.factor} pixels into one latent",
            fix="Change data.resolution.",
        )
    # As any Module: diffusers annotates its own `to` so that no device fits.
    torch.nn.Module.to(codec.vae, runtime.pick_device())
    name = codec.id
    rows = waiting(store, data.transform.spec, name)
    with Meter(console, "encode", len(rows)) as meter:
        return name, encode(store, rows, codec, meter.advance)


def _report(data: DataConfig, store: Store, curated: Curated, codec: str | None, latents_added: int) -> PrepareReport:
    return PrepareReport(
        store=data.store,
        transform=data.transform.spec,
        codec=codec,
        candidates=curated.candidates,
        kept=curated.added + curated.unchanged,
        added=curated.added,
        revised=curated.revised,
        dropped=dict(curated.dropped.most_common()),
        latents_added=latents_added,
        images_version=store.images.version(),
        latents_version=store.latents.version(),
        rejected_version=store.rejected.version(),
    )
