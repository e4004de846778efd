"""The options of `terminus merge` and `terminus extract`; the others are in `options`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MergedModels = Annotated[
    list[str],
    typer.Argument(metavar="MODEL[:WEIGHT]...", help="Models to merge, the first of them the base: A B:0.3 C:0.2."),
]
MergeOut = Annotated[Path, typer.Option("--out", metavar="TARGET", help="A new folder, or NAME-vpred.safetensors.")]
MergeMethod = Annotated[
    str, typer.Option("--method", metavar="METHOD", help="weighted-sum, add-difference (A + w (B − C)), ties or dare.")
]
Blocks = Annotated[
    list[str] | None,
    typer.Option("--block", metavar="BLOCK=WEIGHT", help="Weight in down, down.1, mid, up, text_encoder, vae, ..."),
]
Density = Annotated[
    float | None, typer.Option(help="Share of each difference that ties (0.2) or dare (0.5) keeps.", show_default=False)
]
MergeSeed = Annotated[int, typer.Option("--seed", help="Random seed of what dare drops.")]
MergeAs = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="Merge what predicts differently; of which kind the result is: v-ztsnr, v, epsilon, flow.",
    ),
]
MergedLoras = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="Merge this adapter into the model.")
]
AsAdapter = Annotated[bool, typer.Option("--adapter", help="Merge the adapters into each other, not into the model.")]
Rank = Annotated[int | None, typer.Option(metavar="RANK", help="Rank of the adapter.")]
LargestError = Annotated[
    float | None, typer.Option("--error", metavar="PART", help="Part of each layer's change that may be lost: 0.1.")
]
TunedModel = Annotated[str, typer.Argument(metavar="TUNED", help="The model with the change.")]
BaseModel = Annotated[str, typer.Argument(metavar="BASE", help="The model without it.")]
AdapterOut = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder for the adapter's files.")]
