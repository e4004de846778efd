"""`terminus prepare`: curate, then encode, then report. Repeating the command adds nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rich.console import Console

from terminus import runtime
from terminus.data import report
from terminus.data.curate import Curated, check_rules, curate
from terminus.data.encode import encode, waiting
from terminus.data.report import PrepareReport
from terminus.data.settings import DataConfig
from terminus.data.store import Store, quoted
from terminus.errors import UserError
from terminus.progress import Meter

if TYPE_CHECKING:
    from terminus.model.codec import Codec


def prepare(data: DataConfig, model: str | None, console: Console | None = None) -> PrepareReport:
    """Brings the store up to date with the sources; `model` names the codec, None stops before encoding.

    Raises `UserError` (and writes nothing) if no image can be used, or if the store was made by other rules.
    """
    console = console or Console(stderr=True)
    store = Store(data.store)
    check_rules(data, store)
    # Loaded before the first stage, so that a wrong model is known in seconds and not after hours of curation.
    codec = None if model is None else _codec(data, model)
    with Meter(console, "curate", sum(source.count() for source in data.sources)) as meter:
        curated = curate(data, store, meter.advance)
    added = 0 if codec is None else _encode(data, store, codec, console)
    result = _result(data, store, curated, codec.id if codec else None, added)
    place = report.write(result, store)
    _say(console, result, place)
    return result


def _codec(data: DataConfig, model: str) -> Codec:
    from terminus.model.codec import load_codec

    codec = load_codec(model)
    unit = min(data.resolution, data.transform.step or data.resolution)
    if unit % codec.factor:
        raise UserError(
            f"sides of {unit} pixels do not fit the codec of {model}",
            where="data.resolution, data.buckets.step",
            rule=f"It turns {codec.factor}x{codec.factor} pixels into one latent",
            fix=f"Make both multiples of {codec.factor}.",
        )
    # As any Module: diffusers annotates its own `to` so that no device fits.
    torch.nn.Module.to(codec.vae, runtime.pick_device())
    return codec


def _encode(data: DataConfig, store: Store, codec: Codec, console: Console) -> int:
    rows = waiting(store, data.transform.spec, codec.id)
    with Meter(console, "encode", len(rows)) as meter:
        return encode(store, rows, codec, meter.advance)


def _result(data: DataConfig, store: Store, curated: Curated, codec: str | None, added: int) -> PrepareReport:
    spec = data.transform.spec
    latents = store.latents.latest()
    same = f"transform = {quoted(spec)} and codec = {quoted(codec or '')}"
    return PrepareReport(
        store=data.store,
        transform=spec,
        codec=codec,
        candidates=curated.candidates,
        kept=curated.added + curated.unchanged,
        added=curated.added,
        revised=curated.revised,
        dropped=dict(curated.dropped.most_common()),
        latents_added=added,
        latents=latents.scan(["key"], same).num_rows if latents else 0,
        versions={
            "images": store.images.version(),
            "latents": store.latents.version(),
            "rejected": store.rejected.version(),
        },
        holdings=report.holdings(store, spec),
    )


def _say(console: Console, result: PrepareReport, place: str) -> None:
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items())
    text = (
        f"{result.candidates} candidates: {result.kept} kept ({result.added} new), "
        f"{sum(result.dropped.values())} dropped{f' ({dropped})' if dropped else ''}; "
        f"{result.latents_added} new latents. Report: {place}"
    )
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if not result.holdings.splits.get("validation"):
        warning = (
            "No image is held out (data.validation_fraction is too small for so few), and no run starts without one: "
            "raise it, and prepare into another data.store."
        )
        console.print(warning, highlight=False, markup=False, soft_wrap=True)
