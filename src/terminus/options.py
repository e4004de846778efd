"""The options of the commands: what each is called, takes and means. `cli` says which command has which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_START, _FURTHER, _FILES, _MACHINE = "From an image", "Further networks", "Files", "Machine"

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Settings that replace the recipe's.", show_default=False),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help='A model folder, a .safetensors file, a hub id, or "nano".')
]

Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="What to draw; may be given again, for more images.")
]
ImagesOut = Annotated[Path, typer.Option("--out", help="Folder of the images; nothing in it is overwritten.")]
Negative = Annotated[str, typer.Option(help="What to steer away from.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same images.")]
Count = Annotated[int, typer.Option(help="Images per prompt, with seeds SEED, SEED + 1, ...")]

Steps = Annotated[int, typer.Option(help="Solver steps.")]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="Pixels, W:H, or a shape such as landscape.", show_default="the model's"
    ),
]
Guidance = Annotated[float, typer.Option(help="How closely to follow the prompt.")]
Rescale = Annotated[
    float | None, typer.Option(help="Guidance rescale, 0..1.", show_default="0.7 on zero-terminal-SNR models")
]
Interval = Annotated[
    str, typer.Option(metavar="LOW:HIGH", help="Part of the timesteps that is guided; 1 is pure noise.")
]
Solver = Annotated[
    str,
    typer.Option(help="dpmpp_2m, dpmpp_2m_sde, euler, euler_ancestral, ddim, unipc; lcm and tcd for distilled models."),
]
Spacing = Annotated[
    str, typer.Option(help="trailing; karras, exponential and beta for models without zero terminal SNR.")
]
Variation = Annotated[float, typer.Option(help="0..1: images near the seed's, instead of further seeds.")]

StartImage = Annotated[Path | None, typer.Option("--image", help="Start from this image.", rich_help_panel=_START)]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of it is drawn anew, above 0 to 1.",
        rich_help_panel=_START,
        show_default="0.6; with --mask 1, with --upscale 0.3, less in tiles",
    ),
]
MaskImage = Annotated[
    Path | None, typer.Option("--mask", help="White is drawn anew, black stays.", rich_help_panel=_START)
]
Outpaint = Annotated[
    str | None, typer.Option(metavar="L,T,R,B", help="Pixels to add on each side.", rich_help_panel=_START)
]
Upscale = Annotated[float | None, typer.Option(help="Times as large, up to 8.", rich_help_panel=_START)]
Hires = Annotated[
    str | None, typer.Option(metavar="FACTOR[:STRENGTH]", help="Draw once more, enlarged.", rich_help_panel=_START)
]
Fill = Annotated[
    str | None, typer.Option(help="Behind the mask: surroundings, original or grey.", rich_help_panel=_START)
]
Feather = Annotated[int | None, typer.Option(help="Soft edge inside the mask, in pixels.", rich_help_panel=_START)]
Padding = Annotated[
    int | None, typer.Option(help="Draw only the mask and so many pixels around it.", rich_help_panel=_START)
]
Again = Annotated[
    Path | None,
    typer.Option("--again", metavar="IMAGE", help="Draw an image of ours as it says itself.", rich_help_panel=_START),
]

Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="FILE[:WEIGHT]", help="A LoRA or its kin; may be given again.", rich_help_panel=_FURTHER
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="KIND:FOLDER:IMAGE[:SCALE]",
        help="controlnet, t2i or ip; may be given again.",
        rich_help_panel=_FURTHER,
    ),
]

Format = Annotated[str, typer.Option("--format", help="png, jpeg or webp.", rich_help_panel=_FILES)]
Private = Annotated[
    bool, typer.Option("--private", help="Leave prompt and settings out of the files.", rich_help_panel=_FILES)
]
Sign = Annotated[
    str | None,
    typer.Option(metavar="CERT,KEY", help="Add signed content credentials (C2PA).", rich_help_panel=_FILES),
]

Compile = Annotated[
    str, typer.Option("--compile", help="off, blocks, or graphs (GPU): slower to start.", rich_help_panel=_MACHINE)
]
Offload = Annotated[
    str, typer.Option("--offload", help="none, or model: one network at a time on a GPU.", rich_help_panel=_MACHINE)
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)]

ModelOrRun = Annotated[
    str, typer.Argument(metavar="MODEL_OR_RUN", help='The folder of a run; or a model folder, file, hub id, or "nano".')
]
EvaluationOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the report.", show_default="evaluation/ in the run's")
]
JudgedRecipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="The recipe that trained it.", show_default="the run's own"),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="Draw these, one a line, in place of held-out captions."),
]
JudgedCount = Annotated[
    int | None,
    typer.Option(min=1, help="Captions, and images of the probe on black and on white.", show_default="32"),
]

AnyPath = Annotated[str, typer.Argument(metavar="PATH", help="A model, adapter, run or image; a hub id, or nano.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
FixTarget = Annotated[Path | None, typer.Option(metavar="TARGET", help="Write a copy whose labels agree.")]
Decided = Annotated[str | None, typer.Option("--as", help="With --fix: it is v-ztsnr, v or epsilon.")]
Probe = Annotated[bool, typer.Option("--probe", help="Run the model, and say what its answers look like.")]
ConvertSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A model folder, .safetensors file, hub id, or nano.")
]
ConvertTarget = Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder, or NAME-vpred.safetensors.")]
StoredPrecision = Annotated[str, typer.Option("--precision", help="keep, fp16, bf16 or fp32.")]
ShardSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Split large files of a folder, as in 5GB.")]
TakeEma = Annotated[bool, typer.Option("--ema", help="Take the moving average that a file holds.")]
Onto = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Write out what the adapter SOURCE adds to this model's weights.")
]
Against = Annotated[str | None, typer.Option(metavar="OTHER", help="Measure this beside it: diffusers.")]
BenchBatch = Annotated[int, typer.Option(help="Images drawn at once.")]
BenchRuns = Annotated[int, typer.Option(help="Runs of each; the median counts.")]
BenchOut = Annotated[Path | None, typer.Option(help="Write the numbers here, as JSON.")]
BenchRecipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe that trains a UNet; or random:sdxl, random:nano.")
]
BenchSteps = Annotated[int, typer.Option("--steps", help="Optimizer steps of a run.")]
BenchText = Annotated[str, typer.Option("--text", help="cached, or online: through the text encoders at every step.")]
BenchAverage = Annotated[str, typer.Option("--average", help="both, or none: keep a moving average of the weights.")]
BenchRows = Annotated[int, typer.Option("--rows", help="Rows whose order is drawn.")]
BenchStored = Annotated[int, typer.Option("--stored", help="Rows that are written and read, 262 kB each.")]
StorePlace = Annotated[str, typer.Argument(metavar="STORE", help="A folder or URI: what data.store names.")]
RemoveDamaged = Annotated[bool, typer.Option("--remove", help="Take damaged rows out, for prepare to make anew.")]
CaptionLimit = Annotated[int | None, typer.Option("--limit", min=0, help="Ask about at most this many images.")]
CaptionTrial = Annotated[bool, typer.Option("--trial", help="Ask about a few, show the answers, write nothing.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what it needs: memory, time, energy.")]
PlanGpu = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="With --plan: h100, h200, a100, l40s, 4090.")
]
PreparePlan = Annotated[bool, typer.Option("--plan", help="Only say what it takes: disk, hours, energy.")]
PlanImages = Annotated[int | None, typer.Option("--images", min=1, help="With --plan: as if there were so many.")]
PriceGpu = Annotated[float | None, typer.Option(min=0, help="With --plan: what an hour of the GPU costs.")]
PriceCore = Annotated[float | None, typer.Option(min=0, help="With --plan: what an hour of a core costs.")]
PlanProcesses = Annotated[int, typer.Option("--processes", min=1, help="With --plan: on so many such GPUs.")]
ImportSource = Annotated[Path, typer.Argument(metavar="SOURCE", help="A file or folder of another program.")]
ImportOut = Annotated[Path, typer.Option("--out", metavar="RECIPE", help="The recipe to write; it must be new.")]
PlanJson = Annotated[bool, typer.Option("--json", help="With --plan: one JSON object.")]
Watch = Annotated[bool, typer.Option("--watch", help="Only look on while another process trains this run.")]
