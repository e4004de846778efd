"""Every code block of the documents that is not excused, run as a reader would: page by page, in a folder of its own.

The pages use files that readers are supposed to have (`my-model`, `F.png`, `ink.safetensors`): the fixtures make them
from nano, and one short training of an adapter serves all pages. To be quick, images are drawn in two steps and
recipes are trained for two steps on eight images (`QUICK`); nothing else of a command is changed. The python blocks of
docs/interop.md are run by `tests/parity/test_diffusers_interop.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from terminus import Terminus, cli
from terminus.model.naming import SHIPPED
from tests.documents.blocks import Block, blocks, commands, ours

pytestmark = pytest.mark.slow
IMAGES = "[{kind: folder, name: mine, path: my-images}]"
TINY = ["training.images=8", "training.micro_batch=4", "training.loader_threads=0", "training.precision=fp32"]
TINY += ["training.validation.images=2", "data.validation_fraction=0.25"]
QUICK: dict[str, list[str]] = {
    "sample": ["--steps", "2"],
    "evaluate": ["--count", "2", "--steps", "2"],
    "prepare": [f"data.sources={IMAGES}", *TINY],
    "train": [f"data.sources={IMAGES}", *TINY],
}
"""What is added to a command so that it takes seconds."""

PLACEHOLDERS = {"MODEL": "nano", "RECIPE": "nano", "RUN_DIR": "runs/lora", "DIR": "somewhere"}
PLACEHOLDERS |= {"IMAGES": "my-images", "REAL": "my-images", "A": "nano", "B": "nano"}
BY_OTHERS = {"docs/interop.md", "docs/flow.md"}
"""Pages whose python is run elsewhere."""

RUN = [
    block
    for block in blocks()
    if block.reason is None
    and block.language in ("python", "bash", "sh")
    and not (block.language == "python" and block.page in BY_OTHERS)
]
PAGES = list(dict.fromkeys(block.page for block in RUN))


def drawing(seed: int, size: int = 96) -> Image.Image:
    """A disc on a plain ground, of colours that the number decides."""
    image = Image.new("RGB", (size, size), (40 * seed % 256, 90 * seed % 256, 200))
    ImageDraw.Draw(image).ellipse((20, 20, size - 20 - seed, size - 20), fill=(250, 30 * seed % 256, 20))
    return image


def terminus(*arguments: str) -> None:
    assert cli.main(list(arguments)) == 0, " ".join(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `runs` with a store, and with a run of the recipe `lora` that took two steps."""
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_images(Path())
        terminus("prepare", "lora", *QUICK["prepare"])
        terminus("train", "lora", *QUICK["train"])
    return folder / "runs"


@pytest.fixture(scope="module")
def adapter(trained: Path) -> Path:
    """The LoRA of that run, in kohya's layout."""
    written = (trained / "lora" / "model" / "adapter").glob("*.safetensors")
    (path,) = [path for path in written if path.name != "pytorch_lora_weights.safetensors"]
    return path


def make_images(folder: Path) -> None:
    (folder / "my-images").mkdir()
    for number in range(12):
        drawing(number).save(folder / "my-images" / f"{number}.png")
        (folder / "my-images" / f"{number}.txt").write_text(f"a disc, number {number}", encoding="utf-8")


def model_files(folder: Path) -> None:
    """What docs/inspect.md inspects and converts."""
    terminus("convert", "nano", str(folder / "model.safetensors"))
    for name in ("sdxl.safetensors", "trained.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    with safe_open(folder / "model.safetensors", "pt") as file:
        labels = file.metadata() | {"modelspec.prediction_type": "epsilon"}
    save_file(load_file(folder / "model.safetensors"), folder / "wrong.safetensors", labels)


def repainted(*more: str) -> None:
    """An inpainted image beside the two images that it was made from."""
    command = ["sample", "nano", "--prompt", "a disc", "--image", "F.png", "--mask", "M.png", "--format", "webp"]
    terminus(*command, *more, "--steps", "2", "--out", "made")
    (made,) = Path("made").glob("*.webp")
    shutil.move(made, "repainted.webp")


def with_an_adapter(folder: Path) -> None:
    repainted("--lora", "style.safetensors:0.8")
    with Image.open("M.png") as mask:
        mask.resize((64, 64)).save("mask.png")  # of the size that nano draws


def provenance(folder: Path) -> None:
    shutil.copy("F.png", "initial.png")
    shutil.copy("M.png", "mask.png")
    repainted()
    terminus("sample", "nano", "--prompt", "an apple", "--steps", "2", "--out", "apples")
    shutil.copy("apples/00001-0.png", "apple.png")


def control(folder: Path) -> None:
    """A ControlNet and a T2I-Adapter for nano, untrained."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(SHIPPED["nano"] / "unet", local_files_only=True)
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96))
    network.save_pretrained(folder / "controlnet-canny-sdxl")
    widths = [unet.config.block_out_channels[index] for index in (0, 1, 2, 2)]
    sketch = diffusers.T2IAdapter(3, widths, 1, downscale_factor=8, adapter_type="full_adapter_xl")
    sketch.save_pretrained(folder / "t2i-adapter-sketch-sdxl")
    drawing(5).save("sketch.png")


def a_run(folder: Path) -> None:
    """docs/lora.md calls the run's folder `run`, and the run `my-name`."""
    shutil.copytree("runs/lora", "run")
    (path,) = [path for path in Path("run/model/adapter").glob("*.safetensors") if not path.name.startswith("pytorch")]
    path.rename("run/model/adapter/my-name.safetensors")


def tuned_models(folder: Path) -> None:
    """Two models that might have been trained from nano: other noise on its UNet."""
    for seed, name in enumerate(("tuned", "other")):
        shutil.copytree(SHIPPED["nano"], folder / name)
        path, generator = (
            folder / name / "unet/diffusion_pytorch_model.safetensors",
            torch.Generator().manual_seed(seed),
        )
        moved = {
            key: (value.float() + 0.01 * torch.randn(value.shape, generator=generator)).to(value.dtype)
            for key, value in load_file(path).items()
        }
        save_file(moved, path, {"format": "pt"})


def with_a_card(folder: Path) -> None:
    terminus("card", "runs/lora")


MORE: dict[str, Callable[[Path], None]] = {
    "docs/inspect.md": model_files,
    "docs/sampling.md": with_an_adapter,
    "docs/provenance.md": provenance,
    "docs/adapters.md": control,
    "docs/lora.md": a_run,
    "docs/merging.md": tuned_models,
    "docs/publish.md": with_a_card,
}
"""Page to what else it supposes."""


@pytest.fixture
def folder(trained: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader who has a model, images, an adapter and the run that made it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs")
    make_images(tmp_path)
    for name in ("my-model", "model"):
        shutil.copytree(SHIPPED["nano"], tmp_path / name)
    for name in ("ink", "faces", "style", "look"):
        shutil.copy(adapter, tmp_path / f"{name}.safetensors")
    drawing(3).save("F.png")
    drawing(4).save("edges.png")
    mask = Image.new("L", (96, 96))
    mask.paste(255, (48, 0, 96, 96))
    mask.save("M.png")
    return tmp_path


def run_shell(block: Block) -> None:
    """Each command of a block, which must be one of ours: others have to be excused."""
    for command in commands(block.text):
        arguments = ours(command)
        assert arguments is not None, f"{block.place}: {command[0]} is not run by this test"
        arguments = [PLACEHOLDERS.get(word, word) for word in arguments]
        again = "--again" in arguments
        terminus(*arguments, *([] if again or "--plan" in arguments else QUICK.get(arguments[0], [])))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_page_runs(page: str, folder: Path):
    """From its first block to its last, in one folder; names of python live on from block to block."""
    if page in MORE:
        MORE[page](folder)
    names: dict[str, Any] = {"Path": Path, "Terminus": Terminus}
    if page == "docs/provenance.md":
        names["image"] = Terminus.load("nano").text2img("an apple", steps=2)[0]
    for block in RUN:
        if block.page != page:
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
        else:
            run_shell(block)


def test_yaml_that_has_a_file_name_is_used(folder: Path):
    """docs/start.md's own recipe, with its own images, from prepare to model."""
    (block,) = [one for one in blocks() if one.page == "docs/start.md" and one.language == "yaml"]
    name = re.match(r"# (\S+\.yaml)\n", block.text)
    assert name is not None
    Path(name[1]).write_text(block.text, encoding="utf-8")
    terminus("prepare", name[1], *TINY)
    terminus("train", name[1], *TINY)
    assert (folder / "runs" / "mine" / "model" / "model_index.json").is_file()
