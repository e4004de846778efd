"""A folder to upload to Civitai by hand: the single file, images that carry their metadata, and a description to paste.

Civitai documents reading only, so that there is nothing to send it by. What its form asks for is in `about.md`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terminus.card.facts import FinishedRun, GallerySample, read_run
from terminus.publishing.command import single_file
from terminus.sampling.infotext import SAMPLERS


def write_bundle(run_dir: Path, target: Path) -> Path:
    """Writes the folder `target`; UserError for what is no finished run."""
    run = read_run(run_dir)
    single = single_file(run)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(single, target / single.name)
    (target / "images").mkdir(exist_ok=True)
    for number, sample in enumerate(run.samples):
        _image(run, sample, target / "images" / f"{number}.png")
    (target / "about.md").write_text(_about(run, single.name), encoding="utf-8")
    return target


def _image(run: FinishedRun, sample: GallerySample, path: Path) -> None:
    """The image with the text from which A1111, and Civitai with it, read prompt and settings."""
    settings = run.metrics.at("sampling")
    seed = next(one.number("seed") for one in run.metrics.list("samples") if one.text("prompt") == sample.prompt)
    solver = settings.text("solver") or ""
    with Image.open(run.folder / sample.file) as image:
        line = {
            "Steps": f"{settings.number('steps'):g}",
            "Sampler": SAMPLERS.get(solver, solver),
            "Schedule type": "SGM Uniform",
            "CFG scale": f"{settings.number('guidance'):g}",
            "Seed": f"{seed:.0f}",
            "Size": f"{image.width}x{image.height}",
            "Model": run.name.replace(",", " "),
        }
        said = ", ".join(f"{key}: {value}" for key, value in line.items())
        text = PngInfo()
        text.add_text("parameters", f"{sample.prompt}\n{said}")
        image.save(path, pnginfo=text)


def _about(run: FinishedRun, single: str) -> str:
    licence = run.licence.name if run.licence else "not stated"
    steps, guidance = run.metrics.number("sampling.steps") or 28, run.metrics.number("sampling.guidance") or 4
    kind, programs, rescale = "of the SDXL architecture.", "", ""
    if run.zero_terminal_velocity:
        kind = (
            "of the SDXL architecture with velocity prediction and zero terminal SNR: it draws real blacks and whites."
        )
        programs = (
            "The file says so itself (v_pred and ztsnr), so that ComfyUI, Forge, reForge and SD.Next know it. "
            "In other programs choose v-prediction with zero terminal SNR. "
        )
        rescale = ", CFG rescale 0.7"
    if run.is_flow:
        kind = "of the SDXL architecture, trained as a rectified flow: it draws real blacks and whites."
        programs = "Few programs know such files by themselves: in ComfyUI put the node ModelSamplingSD3 behind it. "
    lines = [
        f"# {run.name}", "", "What the form asks for:", "",
        f"- Name: {run.name}", "- Type: Checkpoint (Trained)", "- Base model: SDXL 1.0", f"- File: {single}",
        f"- Licence: {licence}", "", "Description to paste:", "", f"{run.name} is a model {kind}", "",
        f"{programs}Suggested: {steps:g} steps, CFG {guidance:g}{rescale}.",
    ]  # fmt: skip
    if run.restrictions:
        lines += ["", f"Its licence ({licence}) restricts its use:", "", run.restrictions]
    return "\n".join(lines) + "\n"
