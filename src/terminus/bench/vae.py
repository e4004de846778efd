"""`terminus bench vae`: large images through the autoencoder, whole and in tiles: seconds, memory, difference."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from terminus import runtime
from terminus.bench.contenders import components_of
from terminus.bench.measure import NetworkProbes, peak_bytes, save_result, timed
from terminus.conditioning import Size
from terminus.model.execution import Running, prepare_for_inference
from terminus.model.tiling import Tiling
from terminus.model.vae import VAE

_NEVER = 2**62


@dataclass(frozen=True)
class DecodeMeasurement:
    """One way to decode one image."""

    way: str
    seconds: float | None
    """None where memory did not suffice."""
    peak_gib: float | None = None
    levels_from_whole: float | None = None
    """Mean difference in levels of 255."""


def bench_vae(
    model: str,
    out: Path | None = None,
    size: Size | None = None,
    tiling: Tiling | None = None,
    device: str = "auto",
    running: Running | None = None,
) -> list[DecodeMeasurement]:
    """Decodes one random latent whole and in tiles; prints a table last, and writes `out` as JSON."""
    where, how = runtime.pick_device(device), (running or Running())
    components = prepare_for_inference(components_of(model, where), where, how)
    vae = components.vae
    pixels = size or Size(4 * components.native_pixels, 4 * components.native_pixels)
    # `whole=0` cuts every image, also one that would be decoded in a piece.
    tile = replace(tiling or Tiling(side=components.native_pixels, overlap=components.native_pixels // 4), whole=0)
    shape = (1, vae.channels, pixels.height // vae.factor, pixels.width // vae.factor)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(where)
    networks = NetworkProbes([], vae.autoencoder, vae.autoencoder)
    rows: list[DecodeMeasurement] = []
    reference: torch.Tensor | None = None
    # Tiles first: the whole is what may not fit, and the tiles' numbers should be there then.
    for way, chosen in ((f"tiles of {tile.side}", tile), ("whole", Tiling(whole=_NEVER))):
        own = VAE(vae.autoencoder, chosen)
        try:
            rows.append(_measure(way, own, latents, networks, where))
            image = _decode(own, latents).cpu()
        except torch.OutOfMemoryError:
            rows.append(DecodeMeasurement(way, None))
            continue
        # The second way is the whole; the tiles' distance from it belongs to the first row.
        if reference is not None:
            apart = (image.clamp(-1, 1) - reference.clamp(-1, 1)).abs().mean().item() * 127.5
            rows[0] = replace(rows[0], levels_from_whole=apart)
        reference = image
    _report(rows, model, pixels, where, out)
    return rows


def _measure(
    way: str, vae: VAE, latents: torch.Tensor, networks: NetworkProbes, device: torch.device
) -> DecodeMeasurement:
    peak = peak_bytes(lambda: _decode(vae, latents), networks, device)  # which warms up as well
    seconds = timed(lambda: _decode(vae, latents), device)
    return DecodeMeasurement(way, seconds, None if peak is None else peak / 2**30)


def _decode(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(latents)


def _report(rows: list[DecodeMeasurement], model: str, pixels: Size, device: torch.device, out: Path | None) -> None:
    environment = runtime.environment(device)
    if out is not None:
        content = {
            "model": model,
            "pixels": {"height": pixels.height, "width": pixels.width},
            "environment": asdict(environment),
            "rows": [asdict(row) for row in rows],
        }
        save_result(out, content)
    title = f"{model}: decoding {pixels.width}x{pixels.height} on {environment.hardware}"
    table = Table(box=None, pad_edge=False)
    for name in ("", "seconds", "peak memory, GiB", "levels from whole"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        if row.seconds is None:
            table.add_row(row.way, "out of memory", "-", "-")
        else:
            numbers = (row.seconds, row.peak_gib, row.levels_from_whole)
            table.add_row(row.way, *("-" if number is None else f"{number:.2f}" for number in numbers))
    console = Console(highlight=False)
    console.print(title, soft_wrap=True)
    console.print(table)
