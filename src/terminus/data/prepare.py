"""`terminus prepare`: curate, then encode, then report. Repeating the command adds nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from terminus import runtime
from terminus.data import engine, geometry, report
from terminus.data.captioning.merge import merge_captions
from terminus.data.curate import Curated, curate
from terminus.data.damage import Damage
from terminus.data.encode import encode_latents
from terminus.data.fetch.addresses import Address, is_global
from terminus.data.report import PrepareReport, Tally
from terminus.data.rules import check_rules
from terminus.data.seen_index import KEPT, room_for_scratch
from terminus.data.settings import DataConfig
from terminus.data.store import Store, quoted
from terminus.data.survey import Holdings, survey
from terminus.data.waiting import waiting_cuts
from terminus.errors import UserError
from terminus.progress import Meter

if TYPE_CHECKING:
    from terminus.model.vae import VAE


def prepare(
    data: DataConfig,
    model: str | None,
    console: Console | None = None,
    allow: Callable[[Address], bool] = is_global,
) -> PrepareReport:
    """Brings the store up to date with the sources; `model` names the VAE, None stops before encoding.

    `allow` decides which addresses images may be downloaded from; no recipe can, since recipes are passed around.
    Raises `UserError` (and writes nothing) if no image can be used, or if the store was made by other rules.
    """
    console = console or Console(stderr=True)
    # What can be wrong with the recipe or the store is found before any work.
    store = Store(data.store)
    check_rules(data, store)
    engine.use(data.engine)
    # Loaded before the first stage, so that a wrong model is known in seconds and not after hours of curation.
    vae = None if model is None else _vae(data, model)
    # Images: judge, and keep.
    with Meter(console, "curate", sum(source.count() for source in data.sources)) as meter:
        curated = curate(data, store, meter.advance, allow)
    with room_for_scratch():
        merge_captions(store)  # captions that models wrote survive a change of those that the sources bring
    # Latents, of what has none yet.
    damaged: list[Damage] = []
    added = 0 if vae is None else _encode(data, store, vae, console, damaged)
    # Small fragments of this run become large ones, then what the store holds is counted.
    store.compact()
    found = survey(store, data.transform.spec, data.filters)
    result = _result(data, store, curated, found.holdings, vae.id if vae else None, added)
    result = replace(result, damaged=tuple(map(str, damaged)))
    place = report.write_prepare_report(result, found, store)
    _say(console, result, place)
    return result


def _vae(data: DataConfig, model: str) -> VAE:

    from terminus.model.components import load_vae

    vae = load_vae(model)
    # Sides of all buckets are multiples of this.
    unit = min(data.resolution, data.transform.step or data.resolution)
    if unit % vae.factor:
        raise UserError(
            f"sides of {unit} pixels do not fit the VAE of {model}",
            where="data.resolution, data.buckets.step",
            rule=f"It turns {vae.factor}x{vae.factor} pixels into one latent",
            fix=f"Make both multiples of {vae.factor}.",
        )
    # As any Module: diffusers annotates its own `to` so that no device fits.
    torch.nn.Module.to(vae.autoencoder, runtime.pick_device())
    return vae


def _encode(data: DataConfig, store: Store, vae: VAE, console: Console, damaged: list[Damage]) -> int:
    with room_for_scratch():
        rows = waiting_cuts(store, data.transform.spec, vae.id, data.crops)
        with Meter(console, "encode", len(rows)) as meter:
            return encode_latents(store, rows, vae, meter.advance, damaged.append)


def _result(
    data: DataConfig, store: Store, curated: Curated, holdings: Holdings, vae: str | None, added: int
) -> PrepareReport:
    spec = data.transform.spec
    latents = store.latents.latest()
    specs = ", ".join(quoted(one) for one in geometry.specs(spec, data.crops))
    same = f"transform in ({specs}) and vae = {quoted(vae or '')}"
    return PrepareReport(
        store=data.store,
        transform=spec,
        vae=vae,
        candidates=curated.candidates,
        kept=curated.added + curated.unchanged,
        added=curated.added,
        revised=curated.revised,
        taken_down=curated.taken_down,
        crowded=curated.crowded,
        dropped=dict(curated.dropped.most_common()),
        sources={name: _tally(counts) for name, counts in curated.sources.items()},
        damaged=(),
        latents_added=added,
        latents=latents.counted(same) if latents else 0,
        versions={
            "images": store.images.version(),
            "latents": store.latents.version(),
            "rejected": store.rejected.version(),
        },
        holdings=holdings,
    )


def _tally(counts: Counter[str]) -> Tally:
    dropped = {reason: count for reason, count in counts.most_common() if reason != KEPT}
    return Tally(counts.total(), counts[KEPT], dropped)


def _say(console: Console, result: PrepareReport, place: str) -> None:
    dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items())
    text = (
        f"{result.candidates} candidates: {result.kept} kept ({result.added} new), "
        f"{sum(result.dropped.values())} dropped{f' ({dropped})' if dropped else ''}; "
        f"{result.latents_added} new latents. Report: {place}"
    )
    if result.taken_down:
        text = f"{result.taken_down} images were taken down, because a block-list names them since. {text}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    for name in result.damaged:
        console.print(f"damaged in the store, and no latent: {name}", highlight=False, markup=False, soft_wrap=True)
    if result.damaged:
        fix = f"`terminus data verify {result.store} --remove`, then prepare again: their sources are read anew."
        console.print(fix, highlight=False, markup=False, soft_wrap=True)
    if not result.holdings.splits.get("validation"):
        warning = (
            "No image is held out (data.validation_fraction is too small for so few), and no run starts without one: "
            "raise it, and prepare into another data.store."
        )
        console.print(warning, highlight=False, markup=False, soft_wrap=True)
