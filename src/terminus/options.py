"""The options of the commands: what each is called, takes and means. `cli` says which command has which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TASK, _LOOK, _NETWORKS, _FILES, _SPEED = "Task", "Look", "Adapters and control", "Files", "Speed"
"""Panels of `sample --help`."""

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a recipe that comes with Terminus.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Settings in place of the recipe's, as in training.seed=7.", show_default=False
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help='A model folder, a .safetensors file, a hub id, or "nano".')
]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same images.")]
Steps = Annotated[int, typer.Option(help="Solver steps.")]
ImageSize = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Image size in pixels.", show_default="the model's")
]

# What to draw, and from what.
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Text to draw; repeat it for several prompts.", rich_help_panel=_TASK),
]
Negative = Annotated[str, typer.Option(help="Text to steer away from.", rich_help_panel=_TASK)]
Count = Annotated[int, typer.Option(help="Images per prompt, with seeds SEED, SEED + 1, ...", rich_help_panel=_TASK)]
StartImage = Annotated[
    Path | None, typer.Option("--image", help="Start from this image (image to image).", rich_help_panel=_TASK)
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of the start image is redrawn: above 0, up to 1.",
        rich_help_panel=_TASK,
        show_default="0.6; with --mask 1, with --upscale 0.3, less in tiles",
    ),
]
MaskImage = Annotated[
    Path | None,
    typer.Option(
        "--mask", help="Inpainting mask of the start image: white is redrawn, black stays.", rich_help_panel=_TASK
    ),
]
Outpaint = Annotated[
    str | None,
    typer.Option(
        metavar="L,T,R,B",
        help="Extend the start image by so many pixels at the left, top, right and bottom.",
        rich_help_panel=_TASK,
    ),
]
Upscale = Annotated[
    float | None, typer.Option(help="Enlarge the start image by this factor, up to 8.", rich_help_panel=_TASK)
]
Hires = Annotated[
    str | None,
    typer.Option(
        metavar="FACTOR[:STRENGTH]",
        help="Draw, enlarge by FACTOR, and redraw with STRENGTH (hires fix).",
        rich_help_panel=_TASK,
    ),
]
Fill = Annotated[
    str | None,
    typer.Option(
        help="Content under the mask before it is redrawn: surroundings, original or grey.", rich_help_panel=_TASK
    ),
]
Feather = Annotated[
    int | None, typer.Option(help="Width of the mask's soft edge, inside it, in pixels.", rich_help_panel=_TASK)
]
Padding = Annotated[
    int | None,
    typer.Option(help="Redraw only the masked region and this many pixels around it.", rich_help_panel=_TASK),
]
Again = Annotated[
    Path | None,
    typer.Option(
        "--again", metavar="IMAGE", help="Regenerate an image from its embedded metadata.", rich_help_panel=_TASK
    ),
]

# How it is drawn.
SampleSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="Image size in pixels, a ratio such as 3:2, or square, portrait, landscape, tall, wide.",
        show_default="the model's",
        rich_help_panel=_LOOK,
    ),
]
SampleSteps = Annotated[
    int, typer.Option("--steps", help="Solver steps: more are slower and more exact.", rich_help_panel=_LOOK)
]
Guidance = Annotated[
    float, typer.Option(help="Guidance scale (CFG): how closely to follow the prompt.", rich_help_panel=_LOOK)
]
Rescale = Annotated[
    float | None,
    typer.Option(
        help="Guidance rescale, 0..1: keeps strong guidance from overexposing.",
        show_default="0.7 on zero-terminal-SNR models",
        rich_help_panel=_LOOK,
    ),
]
Interval = Annotated[
    str,
    typer.Option(
        metavar="LOW:HIGH", help="Part of the timesteps that is guided; 1 is pure noise.", rich_help_panel=_LOOK
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        help="dpmpp_2m, dpmpp_2m_sde, euler, euler_ancestral, ddim, unipc; lcm and tcd for distilled models.",
        rich_help_panel=_LOOK,
    ),
]
Spacing = Annotated[
    str,
    typer.Option(
        help="Timestep spacing: trailing; karras, exponential and beta for models without zero terminal SNR.",
        rich_help_panel=_LOOK,
    ),
]
SampleSeed = Annotated[
    int,
    typer.Option("--seed", help="Random seed; the same seed and settings give the same image.", rich_help_panel=_LOOK),
]
Variation = Annotated[
    float,
    typer.Option(
        help="0..1: keep the seed for all images of a prompt, and change this much of the noise.",
        rich_help_panel=_LOOK,
    ),
]

# What is loaded beside the model.
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="A LoRA or LyCORIS file; repeat it for several.",
        rich_help_panel=_NETWORKS,
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="KIND:FOLDER:IMAGE[:SCALE]",
        help="A ControlNet (controlnet), T2I-Adapter (t2i) or IP-Adapter (ip) and its image; repeat it for several.",
        rich_help_panel=_NETWORKS,
    ),
]

# Where images go, and what their files say.
ImagesOut = Annotated[
    Path, typer.Option("--out", help="Folder of the images; nothing in it is overwritten.", rich_help_panel=_FILES)
]
Format = Annotated[str, typer.Option("--format", help="File format: png, jpeg or webp.", rich_help_panel=_FILES)]
Private = Annotated[
    bool, typer.Option("--private", help="Leave prompt and settings out of the files.", rich_help_panel=_FILES)
]
Sign = Annotated[
    str | None,
    typer.Option(metavar="CERT,KEY", help="Add signed content credentials (C2PA).", rich_help_panel=_FILES),
]

# How it runs.
Compile = Annotated[
    str,
    typer.Option(
        "--compile",
        help="Compile the networks: off, blocks, or graphs (GPU); slower to start, faster per image.",
        rich_help_panel=_SPEED,
    ),
]
Offload = Annotated[
    str,
    typer.Option("--offload", help="none, or model: only the network in use is on the GPU.", rich_help_panel=_SPEED),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_SPEED)]

# Judging a model.
Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL_OR_RUN",
        help='The folder of a run; a model folder, file, hub id, or "nano"; or a folder of images.',
    ),
]
CompareThem = Annotated[
    bool, typer.Option("--compare", help="Compare several, in pairs of the same prompts and seeds, with the first.")
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference", metavar="FOLDER", help="Real images to compare with.", show_default="what the run held out"
    ),
]
TrainingImages = Annotated[
    Path | None,
    typer.Option(
        "--training",
        metavar="FOLDER",
        help="Images that were trained on, to look for memorised ones.",
        show_default="the run's store",
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        "--features",
        metavar="NETWORK",
        help="What sees the images: nano, a folder or hub id of CLIP or DINO, a .safetensors file of FID's Inception; "
        "repeatable.",
        show_default="nano",
    ),
]
AnySize = Annotated[bool, typer.Option("--any-size", help="Let the reference be of other sizes than what is drawn.")]
JudgeServer = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL",
        help="A server that speaks OpenAI's protocol (.../v1): ask it whether images show what 200 prompts ask for.",
    ),
]
JudgeModel = Annotated[str | None, typer.Option("--judge-model", metavar="NAME", help="Model that the server serves.")]
JudgeKey = Annotated[
    str | None,
    typer.Option("--judge-key", metavar="VARIABLE", help="Environment variable with the server's key."),
]
BiasFile = Annotated[
    Path | None,
    typer.Option(
        "--bias",
        metavar="FILE",
        help="A YAML file of prompts, and of answers that their images are told apart by.",
    ),
]
EvaluationOut = Annotated[
    Path | None, typer.Option("--out", help="Folder of the report.", show_default="evaluation/ in the run's folder")
]
JudgedRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="The recipe that the model was trained with.", show_default="the run's own"
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="A text file of prompts, one a line, in place of held-out captions."
    ),
]
JudgedCount = Annotated[
    int | None,
    typer.Option(min=1, help="Held-out captions to draw, and probe images on black and on white.", show_default="32"),
]

# Publishing a run.
Really = Annotated[bool, typer.Option("--really", help="Make the repository and send the files.")]
PrivateRepository = Annotated[bool, typer.Option("--private", help="A repository that only you see.")]
Gated = Annotated[bool, typer.Option("--gated", help="Ask readers to accept the licence before they download.")]
Collection = Annotated[
    str | None, typer.Option("--collection", metavar="SLUG", help="Add it to this collection of the Hub.")
]
WithSpace = Annotated[bool, typer.Option("--space", help="Also a Space of the same name that serves the model.")]
Civitai = Annotated[
    Path | None, typer.Option("--civitai", metavar="FOLDER", help="Also write a folder to upload to Civitai by hand.")
]

# Looking at files, and converting them.
AnyPath = Annotated[str, typer.Argument(metavar="PATH", help="A model, adapter, run or image; a hub id, or nano.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FixTarget = Annotated[Path | None, typer.Option(metavar="TARGET", help="Write a copy with consistent labels here.")]
Decided = Annotated[str | None, typer.Option("--as", help="With --fix: label it v-ztsnr, v, epsilon or flow.")]
Probe = Annotated[bool, typer.Option("--probe", help="Run the model, and judge by its outputs what it predicts.")]
ConvertSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A model folder, .safetensors file, hub id, or nano.")
]
ConvertTarget = Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder, or NAME-vpred.safetensors.")]
StoredPrecision = Annotated[
    str, typer.Option("--precision", help="Number format of the written weights: keep, fp16, bf16 or fp32.")
]
ShardSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Split a folder's large files into pieces of this size, such as 5GB.")
]
TakeEma = Annotated[
    bool, typer.Option("--ema", help="Take the averaged weights (EMA) that the file holds beside the others.")
]
Onto = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Write what the adapter SOURCE adds to the weights of this model.")
]
# Benchmarks.
Against = Annotated[str | None, typer.Option(metavar="OTHER", help="Measure this beside it: diffusers.")]
BenchBatch = Annotated[int, typer.Option(help="Images drawn at once.")]
BenchRuns = Annotated[int, typer.Option(help="Runs of each; the median counts.")]
BenchOut = Annotated[Path | None, typer.Option(help="Write the numbers here, as JSON.")]
StorePlace = Annotated[
    str, typer.Argument(metavar="STORE", help="Folder or URI of the prepared data (data.store in the recipe).")
]
RemoveDamaged = Annotated[
    bool, typer.Option("--remove", help="Remove damaged rows; the next prepare makes them again.")
]
CaptionLimit = Annotated[int | None, typer.Option("--limit", min=0, help="Caption at most this many images.")]
CaptionTrial = Annotated[bool, typer.Option("--trial", help="Caption a few images, print the captions, write nothing.")]
# Plans, of preparation and of training.
Plan = Annotated[bool, typer.Option("--plan", help="Only estimate memory, time and energy; train nothing.")]
PlanGpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="With --plan: the GPU to plan for (h100, h200, a100, l40s, 4090)."),
]
PreparePlan = Annotated[
    bool, typer.Option("--plan", help="Only estimate disk space, time and energy; prepare nothing.")
]
PlanImages = Annotated[int | None, typer.Option("--images", min=1, help="With --plan: assume this many images.")]
PriceGpu = Annotated[float | None, typer.Option(min=0, help="With --plan: price of a GPU hour.")]
PriceCore = Annotated[float | None, typer.Option(min=0, help="With --plan: price of a CPU core hour.")]
PlanProcesses = Annotated[
    int, typer.Option("--processes", min=1, help="With --plan: number of GPUs, one process each.")
]
# Imports, and the rest of `train`.
ImportSource = Annotated[Path, typer.Argument(metavar="SOURCE", help="Settings file or folder of another trainer.")]
ImportOut = Annotated[Path, typer.Option("--out", metavar="RECIPE", help="The recipe to write; it must be new.")]
PlanJson = Annotated[bool, typer.Option("--json", help="With --plan: print one JSON object.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show the progress of a run that another process trains.")]

# The server.
ServedModels = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="Models to draw with, the first of them at the start: folders, .safetensors files, hub ids.",
        show_default="nano",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs --token-file.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Tokens that let users in: a line each, TOKEN or NAME TOKEN.")
]
ModelsFolder = Annotated[
    list[Path] | None, typer.Option("--models", metavar="DIR", help="Folder of further models and of adapters.")
]
ImagesFolder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Folder of images, queue and uploads.")]
RunsFolder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of training runs to show.")]
RootPath = Annotated[str, typer.Option(metavar="PATH", help="Path that a proxy serves this under, such as /terminus.")]
Devices = Annotated[
    str, typer.Option(metavar="LIST", help="Devices with a worker each, such as cuda:0,cuda:1; auto takes one.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of each worker.", show_default="all cores but one")
]
Expand = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Text server (OpenAI's protocol) that writes prompts out for those who ask."),
]
Safety = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Image classifier that hides images; FOLDER#LABEL=THRESHOLD names what is hidden."
    ),
]
Stdio = Annotated[bool, typer.Option("--stdio", help="Speak MCP on standard input and output, in place of HTTP.")]
