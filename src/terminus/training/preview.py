"""Images of fixed prompts while training: the same prompts, seeds and schedule every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from terminus.model.components import Components
from terminus.runtime import Precision
from terminus.sampling.settings import Settings
from terminus.sampling.sheet import sheet
from terminus.sampling.tasks import text2img, to_bytes
from terminus.training.monitor.journal import Journal
from terminus.training.recipe import Preview
from terminus.training.saving.checkpoint import RunPosition

_COLUMNS = 8


def render_previews(
    folder: Path,
    settings: Preview,
    components: Components,
    position: RunPosition,
    journal: Journal | None,
    precision: Precision,
) -> Path | None:
    """One image per prompt, with seeds 0, 1, 2, ..., into `previews/` and TensorBoard; returns the sheet's path.

    Without a journal it only computes: a process that holds a part of the network takes part, and another one writes.
    """
    prompts = settings.prompts
    how = Settings(steps=settings.steps, guidance=settings.guidance, precision=precision)
    components.unet.eval()
    *_, last = text2img(components, prompts, range(len(prompts)), how)
    components.unet.train()
    if journal is None:
        return None
    images = [Image.fromarray(one.numpy()) for one in to_bytes(components, last.x)]
    page = sheet(images, prompts, columns=min(len(prompts), _COLUMNS))
    path = folder / "previews" / f"images-{position.images:012d}.png"
    path.parent.mkdir(exist_ok=True)
    page.save(path)
    journal.image("preview", torch.from_numpy(np.array(page)).permute(2, 0, 1) / 255, position.step)
    return path
