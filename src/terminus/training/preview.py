"""Pictures of fixed prompts while training: the same prompts, seeds and schedule every time."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from terminus.model.components import Components
from terminus.sampling.tasks import Settings, text2img, to_bytes
from terminus.training.checkpoint import Position
from terminus.training.journal import Journal
from terminus.training.recipe import Preview

_COLUMNS = 8


def draw(folder: Path, settings: Preview, components: Components, position: Position, journal: Journal) -> Path:
    """One picture per prompt, with seeds 0, 1, 2, ..., into `previews/` and TensorBoard; returns the sheet's path."""
    prompts = settings.prompts
    how = Settings(steps=settings.steps, guidance=settings.guidance)
    components.unet.eval()
    *_, last = text2img(components, prompts, range(len(prompts)), how)
    components.unet.train()
    sheet = tile(to_bytes(components, last.x), _COLUMNS)
    path = folder / "previews" / f"images-{position.images:012d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet.numpy()).save(path)
    journal.picture("preview", sheet.permute(2, 0, 1) / 255, position.step)
    return path


def tile(pictures: torch.Tensor, columns: int) -> torch.Tensor:
    """uint8 [n, height, width, 3] as one sheet, row by row, empty places white."""
    count, height, width, _ = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = torch.full((rows * height, columns * width, 3), 255, dtype=torch.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = picture
    return sheet
