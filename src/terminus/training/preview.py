"""Images of fixed prompts while training: the same prompts, seeds and schedule every time."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from terminus.model.components import Components
from terminus.runtime import Precision
from terminus.sampling.settings import Settings
from terminus.sampling.sheet import sheet
from terminus.sampling.tasks import text2img, to_bytes
from terminus.training.monitor.outputs import Outputs
from terminus.training.recipe import Preview
from terminus.training.saving.checkpoint import RunPosition

_COLUMNS = 8


def render_previews(
    folder: Path,
    settings: Preview,
    components: Components,
    position: RunPosition,
    outputs: Outputs,
    precision: Precision,
) -> None:
    """Draws one image per prompt, with seeds 0, 1, 2, ..., into a sheet in `previews/`, and passes it to the outputs.

    Every process must take part: it may hold a part of the network. Only the one that has outputs writes.
    """
    prompts = settings.prompts
    how = Settings(steps=settings.steps, guidance=settings.guidance, precision=precision)
    components.unet.eval()
    # Of all steps only the last has the images.
    *_, last = text2img(components, prompts, range(len(prompts)), how)
    components.unet.train()
    if not outputs.shown:
        return
    images = [Image.fromarray(one.numpy()) for one in to_bytes(components, last.x)]
    page = sheet(images, prompts, columns=min(len(prompts), _COLUMNS))
    path = folder / "previews" / f"images-{position.images:012d}.png"
    path.parent.mkdir(exist_ok=True)
    page.save(path)
    outputs.preview(path, page, position.step)
