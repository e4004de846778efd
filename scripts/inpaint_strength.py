"""What lies under an inpainting mask shows through, unless sampling starts at the terminal timestep.

    python scripts/inpaint_strength.py

The shipped nano keeps a drawing and repaints what is around it. Two images differ in nothing but the part that is
repainted, which is black in one and white in the other; whatever the answer to them differs by has leaked through the
mask. Prints the table of docs/interop.md and writes the image below it. A method is one function of `Task`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline
from diffusers.utils import logging
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from terminus import Terminus
from terminus.data import emoji
from terminus.data.emoji import BACKGROUNDS, CONTRAST, Emoji
from terminus.evaluation.luminance import luma
from terminus.model.weights import SHIPPED

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "inpaint-strength.png"
SIDE, STEPS, GUIDANCE, RESCALE = 64, 20, 4.0, 0.7
SUBJECTS = ("red apple", "pear", "soccer ball", "yellow heart")
SEEDS = 4
"""Of each subject: 16 images behind every number."""
OPAQUE, KEPT_INSIDE = 200, 5
"""Kept is where the drawing is opaque, less the window of this many pixels that its edge shines into."""


@dataclass(frozen=True)
class Task:
    """Images to repaint where their masks are white, one prompt and one seed each."""

    images: tuple[Image.Image, ...]
    masks: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


Method = Callable[[Task], list[Image.Image]]


def in_diffusers(strength: float) -> Method:
    """The pipeline as it comes, with the scheduler that the folder names."""
    logging.disable_progress_bar()
    pipeline: Any = StableDiffusionXLInpaintPipeline.from_pretrained(
        SHIPPED["nano"], local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)

    def paint(task: Task) -> list[Image.Image]:
        return pipeline(
            list(task.prompts),
            negative_prompt=[""] * len(task.prompts),
            image=list(task.images),
            mask_image=list(task.masks),
            height=SIDE,
            width=SIDE,
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            guidance_rescale=RESCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in task.seeds],
        ).images

    return paint


def in_terminus() -> Method:
    """What the mask hides is replaced before anything looks at it, and sampling starts from pure noise."""
    model = Terminus.load(SHIPPED["nano"])

    def paint(task: Task) -> list[Image.Image]:
        rows = zip(task.prompts, task.images, task.masks, task.seeds, strict=True)
        return [
            model.inpaint(prompt, image, mask, seed=seed, steps=STEPS, guidance=GUIDANCE, solver="euler")[0]
            for prompt, image, mask, seed in rows
        ]

    return paint


def methods() -> Mapping[str, Method]:
    return {
        "diffusers, strength 0.9999": in_diffusers(0.9999),
        "diffusers, strength 1": in_diffusers(1.0),
        "Terminus": in_terminus(),
    }


def drawing(name: str) -> Emoji:
    return next(one for one in emoji.drawings() if one.style == "3d" and one.name == name)


def wordings(subject: Emoji) -> Mapping[str, str]:
    """What is asked for → the prompt."""
    named = {f"“... on a {color} background”": emoji.emoji_caption(subject, color) for color in CONTRAST}
    return {**named, "the subject alone": f"{emoji.STYLES['3d']} {subject.subject}", "nothing (empty prompt)": ""}


def cut_out(subject: Emoji) -> Image.Image:
    with Image.open(io.BytesIO(emoji.rgba(subject))) as image:
        return image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def on_background(subject: Emoji, color: str) -> Image.Image:
    front, back = cut_out(subject), Image.new("RGBA", (SIDE, SIDE), BACKGROUNDS[color])
    return Image.alpha_composite(back, front).convert("RGB")


def mask_around(subject: Emoji) -> Image.Image:
    """White where to repaint: everything but the inside of the drawing."""
    opaque = cut_out(subject).getchannel("A").point(lambda alpha: 255 if alpha > OPAQUE else 0)
    return opaque.filter(ImageFilter.MinFilter(KEPT_INSIDE)).point(lambda value: 255 - value)


def background_luma(image: Image.Image, subject: Emoji) -> float:
    """Mean luma, 0..1, of the pixels that no part of the drawing touches."""
    outside = np.asarray(cut_out(subject).getchannel("A")) == 0
    return float(luma(np.asarray(image)[None])[0][outside].mean())


def task_for(asked: str, hidden: str) -> tuple[Task, list[Emoji]]:
    subjects = [drawing(name) for name in SUBJECTS for _ in range(SEEDS)]
    return Task(
        tuple(on_background(subject, hidden) for subject in subjects),
        tuple(mask_around(subject) for subject in subjects),
        tuple(wordings(subject)[asked] for subject in subjects),
        tuple(range(len(subjects))),
    ), subjects


def measure(method: Method, asked: str) -> tuple[dict[str, np.ndarray], dict[str, Image.Image]]:
    """Background luma of each image, and the first image, by what was hidden."""
    lumas: dict[str, np.ndarray] = {}
    first: dict[str, Image.Image] = {}
    for hidden in CONTRAST:
        task, subjects = task_for(asked, hidden)
        painted = method(task)
        first[hidden] = painted[0]
        lumas[hidden] = np.array([background_luma(*pair) for pair in zip(painted, subjects, strict=True)])
    return lumas, first


def sheet(columns: Mapping[str, Mapping[str, Image.Image]]) -> Image.Image:
    """One column per label, one row per hidden colour; every pixel four times as large."""
    cell, margin, gap = SIDE * 4, 36, 8
    size = (len(columns) * (cell + gap) + gap, len(CONTRAST) * (cell + gap) + margin)
    canvas = Image.new("RGB", size, "#808080")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for column, (label, images) in enumerate(columns.items()):
        left = gap + column * (cell + gap)
        draw.text((left, 8), label, fill="white", font=font)
        for row, hidden in enumerate(CONTRAST):
            enlarged = images[hidden].resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left, margin + row * (cell + gap)))
    return canvas


@torch.no_grad()
def visibility(cells: int) -> float:
    """How far the brightness below the mask stands out of the noise that strength 0.9999 starts from.

    In standard deviations of the mean of `cells` x `cells` latents: black's distance from white, times alpha / sigma.
    """
    vae: Any = AutoencoderKL.from_pretrained(SHIPPED["nano"] / "vae", local_files_only=True, dtype=torch.float32)
    plain = [vae.encode(torch.full((1, 3, SIDE, SIDE), level)).latent_dist.mode() for level in (-1.0, 1.0)]
    distance = vae.config.scaling_factor * (plain[1] - plain[0]).mean((0, 2, 3)).norm()
    scheduler: Any = EulerDiscreteScheduler.from_pretrained(SHIPPED["nano"] / "scheduler", local_files_only=True)
    scheduler.set_timesteps(STEPS)
    return float(distance / scheduler.sigmas[1]) * cells


def main() -> None:
    subject = drawing(SUBJECTS[0])
    *_, nothing = wordings(subject)
    columns: dict[str, Mapping[str, Image.Image]] = {
        "image": {hidden: on_background(subject, hidden) for hidden in CONTRAST},
        "mask (white: repaint)": {hidden: mask_around(subject).convert("RGB") for hidden in CONTRAST},
    }
    print("| asked for | method | hidden black | hidden white | leak |\n|---|---|---|---|---|")
    ready = methods()
    for asked in wordings(subject):
        for name, method in ready.items():
            lumas, first = measure(method, asked)
            black, white = (lumas[hidden] for hidden in CONTRAST)
            error = (white - black).std(ddof=1) / len(white) ** 0.5
            means = f"{black.mean():.3f} | {white.mean():.3f} | {(white - black).mean():+.3f} ± {error:.3f}"
            print(f"| {asked} | {name} | {means} |", flush=True)
            if asked == nothing:
                columns[name] = first
    sheet(columns).save(IMAGE, optimize=True)
    print(f"\nvisible by {visibility(16):.1f} deviations in 16 x 16 latents, by {visibility(128):.1f} in 128 x 128")
    print(IMAGE)


if __name__ == "__main__":
    main()
