"""The UNet with everything inside that an image's request fixes: prompts, sizes, guidance, further inputs.

What is left is a function of the latent and the timestep, which is all that a solver may know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from terminus import runtime
from terminus.conditioning import MicroConditioning, Size, time_ids
from terminus.diffusion.objective import Network
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.control import combined
from terminus.model.execution import computes_in
from terminus.model.record import noise_schedule
from terminus.model.text import TextFeatures
from terminus.model.unet import Residuals, predict
from terminus.sampling import prompts
from terminus.sampling.controls import LoadedControls
from terminus.sampling.settings import ImageRequest, Settings


def network(
    components: Components,
    requests: Sequence[ImageRequest],
    settings: Settings,
    size: Size,
    known: Float[Tensor, "1 c h w"] | None = None,
    control_inputs: LoadedControls | None = None,
) -> Network:
    """A function (x, t) → one prediction per request. `known` are the channels that an inpainting UNet reads besides x.

    All rows of `t` are the same timestep. It is looked at, so on the CPU it costs nothing.
    """
    control_inputs = control_inputs or LoadedControls()
    # In which precision, and whether guided.
    device, dtype = components.text_encoders.device, _computes_in(components, settings)
    held = dtype != torch.float32
    precision = _autocast_precision(components, settings, held, bool(control_inputs))
    guidance, schedule = settings.guidance_for(components), noise_schedule(components.record.schedule)
    T = schedule.timesteps
    guided = guidance.scale != 1.0

    # Text and sizes are the same at every step. With guidance the rows of the negative prompts follow.
    texts, sizes = _texts_and_sizes(requests, settings, size, guided)
    with torch.no_grad(), runtime.autocast(device, precision):
        text = _encode(components, texts, max(prompt_chunks(components, one, settings) for one in requests))
        text = TextFeatures(text.context.to(dtype), text.pooled.to(dtype))
    ids = time_ids(sizes, device)

    def run(x: Tensor, t: Tensor) -> Tensor:
        # A UNet for inpainting reads the same further channels in every row.
        here = x if known is None else torch.cat([x, known.expand(len(x), -1, -1, -1)], dim=1)
        now = int(t[0])
        # Where guidance acts, one call of the UNet makes both predictions.
        twice = guided and guidance.active(now, T)
        copies = 2 if twice else 1
        rows = slice(copies * len(x))
        with torch.no_grad(), runtime.autocast(device, precision):
            inputs = here.to(dtype).repeat(copies, 1, 1, 1)
            times = schedule.network_time(torch.full((len(inputs),), now, dtype=torch.long, device=x.device))
            residuals = combined(control_inputs.controls, inputs, now, text[rows], ids[rows])
            # Controls give float32, and a UNet held in bf16 adds bf16.
            if held and residuals is not None:
                residuals = _in(residuals, dtype)
            with control_inputs.image_prompts(len(x), twice) as embeds:
                output = predict(components.unet, inputs, times, text[rows], ids[rows], residuals, embeds)
        return guidance.combine(*output.chunk(2)) if twice else output

    return run


def _autocast_precision(components: Components, settings: Settings, held: bool, controlled: bool) -> runtime.Precision:
    """The precision of autocast; `held` says whether the networks are held in bf16.

    Those need none, and it would run their norms in fp32; controls are held in fp32 and do.
    """
    if not held:
        return settings.precision_for(components)
    return "bf16" if controlled else "fp32"


def _texts_and_sizes(
    requests: Sequence[ImageRequest], settings: Settings, size: Size, guided: bool
) -> tuple[list[str], list[MicroConditioning]]:
    """Text and micro-conditioning of each row: the prompts, then with guidance the negative prompts."""
    whole = settings.conditioning or MicroConditioning.uncropped(size)
    texts, sizes = [one.prompt for one in requests], [whole] * len(requests)
    if guided:
        texts += [one.negative for one in requests]
        sizes += [settings.negative_conditioning or whole] * len(requests)
    return texts, sizes


def _computes_in(components: Components, settings: Settings) -> torch.dtype:
    dtype = computes_in(components.unet)
    if dtype != torch.float32 and settings.precision == "fp32":
        raise UserError(
            "Networks that are held in bf16 cannot draw in fp32",
            rule="A model is loaded in the precision that it computes in",
            fix='Load it with Running(precision="fp32")',
        )
    return dtype


def prompt_chunks(components: Components, request: ImageRequest, settings: Settings) -> int:
    """The number of chunks of text that the text encoders read for this request.

    More of them, though empty, would change its image: those of one batch must have equally many.
    """
    texts = [request.prompt] if settings.guidance == 1.0 else [request.prompt, request.negative]
    return max(prompts.count_chunks(components.text_encoders, text) for text in texts)


def channels(components: Components) -> int:
    """Channels of the UNet's input: the VAE's own, or more on models that read further images."""
    return cast(int, components.unet.config["in_channels"])


def _in(residuals: Residuals, dtype: torch.dtype) -> Residuals:
    down, intrablock = (tuple(one.to(dtype) for one in part) for part in (residuals.down, residuals.intrablock))
    return Residuals(down, None if residuals.mid is None else residuals.mid.to(dtype), intrablock)


def _encode(components: Components, texts: Sequence[str], count: int) -> TextFeatures:
    # Equal texts, such as most negative prompts, are read once.
    distinct = list(dict.fromkeys(texts))
    encoded = prompts.encode_prompts(components.text_encoders, distinct, count)
    rows = [distinct.index(text) for text in texts]
    return TextFeatures(encoded.context[rows], encoded.pooled[rows])
