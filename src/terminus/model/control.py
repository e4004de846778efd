"""Images that steer the UNet from the side: ControlNet (2302.05543) and T2I-Adapter (2302.08453), as one interface.

A control is a network, an image, and how strongly and how long it acts. When it acts is said in fractions of the
schedule's time, not of the steps, so it means the same for every solver and every number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from diffusers import ControlNetModel, T2IAdapter
from jaxtyping import Float
from torch import Tensor, nn

from terminus.diffusion.schedule import NoiseSchedule
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.record import noise_schedule
from terminus.model.text import TextFeatures
from terminus.model.unet import Residuals, UNet
from terminus.model.weights import at_home, load_module, read_json

Kind = Literal["controlnet", "t2i"]
ControlImage = Float[Tensor, "images channels height width"]


@dataclass(frozen=True)
class ControlInterval:
    """When a control acts, in fractions of the way from noise (0) to image (1); the end is not included."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise UserError(
                f"A control from {self.start} to {self.end}", rule="The start is before the end, both from 0 to 1"
            )

    def covers(self, t: int, timesteps: int) -> bool:
        """Step i of n is the timestep round(T - i T / n) - 1, whose fraction i / n is known to half a timestep."""
        fraction, half = (timesteps - 1 - t) / timesteps, 0.51 / timesteps
        return self.start - half <= fraction < self.end - half


@dataclass(frozen=True)
class Control:
    """One network with its image; `load_control` makes it."""

    name: str
    kind: Kind
    network: ControlNetModel | T2IAdapter
    image: ControlImage
    """In [0, 1], one for all rows or one per row; of the size of the image to be made."""
    scale: float
    span: ControlInterval
    schedule: NoiseSchedule
    features: tuple[Tensor, ...] = ()
    """Features that a T2I-Adapter makes of its image, once: it looks at neither the latent nor the time."""

    def residuals(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: int,
        text: TextFeatures,
        time_ids: Float[Tensor, "batch 6"],
    ) -> Residuals:
        """Tensors to add inside the UNet for these inputs at timestep t; nothing outside its span, or at scale 0."""
        # Outside of its time, or without weight, exactly as if it were not there.
        if self.scale == 0 or not self.span.covers(t, self.schedule.timesteps):
            return Residuals()
        if self.kind == "t2i":
            return Residuals(intrablock=tuple(self.scale * _rows(level, len(x)) for level in self.features))
        self._check_size(x)
        # A UNet for inpainting reads its mask and masked image after the latent; ControlNets read the latent.
        latent = x[:, : cast(int, self.network.config["in_channels"])]
        down, mid = cast(Callable[..., tuple[list[Tensor], Tensor]], self.network)(
            latent,
            self.schedule.network_time(torch.full((len(x),), t, dtype=torch.long, device=x.device)),
            encoder_hidden_states=text.context,
            controlnet_cond=_rows(self.image, len(x)).to(x.device),
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids},
            return_dict=False,
        )
        return Residuals(down=tuple(self.scale * level for level in down), mid=self.scale * mid)

    def _check_size(self, x: Tensor) -> None:
        factor = 2 ** (len(cast(Sequence[int], self.network.config["conditioning_embedding_out_channels"])) - 1)
        wanted = (x.shape[-2] * factor, x.shape[-1] * factor)
        if tuple(self.image.shape[-2:]) != wanted:
            raise UserError(
                f"The image of {self.name} is {_size(self.image.shape[-2:])}, the latent asks for {_size(wanted)}",
                rule="A control image has the size of the image to be made (width x height)",
                fix="Resize the control image",
            )


def load_control(
    kind: Kind,
    folder: str | Path,
    image: ControlImage,
    components: Components,
    scale: float = 1.0,
    span: ControlInterval | None = None,
) -> Control:
    """A control from a local diffusers folder (`config.json` and safetensors), for this model and this image.

    UserError for a network that was made for another UNet, or an image that it cannot read.
    """
    if kind not in get_args(Kind):
        raise UserError(f"A control of kind {kind!r}", rule=f"Known: {', '.join(get_args(Kind))}")
    path = at_home(folder)
    if not math.isfinite(scale):
        raise UserError(f"The scale of a control is {scale}", rule="A scale is a finite number, 1 as it was trained")
    # The network, if its folder says that it is of this class.
    cls = ControlNetModel if kind == "controlnet" else T2IAdapter
    _check_class(cls.__name__, path)
    network = load_module(cls, path).eval().requires_grad_(False)
    cast(nn.Module, network).to(components.text_encoders.device)  # where the UNet runs, which may wait elsewhere
    # The image that steers it.
    channels = _channels(network)
    if image.shape[1] != channels or not (image.min() >= 0 and image.max() <= 1):
        raise UserError(
            f"A control image of {image.shape[1]} channels, from {image.min():.3g} to {image.max():.3g}",
            where=str(path),
            rule=f"This network reads {channels} channels from 0 to 1",
        )
    image = image.to(components.text_encoders.device, torch.float32)
    schedule = noise_schedule(components.record.schedule)
    features: tuple[Tensor, ...] = ()
    # Does it fit this UNet? A T2I-Adapter's features show it, and are made once for all steps.
    if isinstance(network, ControlNetModel):
        _check_controlnet(network, components.unet, str(path))
    else:
        features = _features(network, image, components, str(path))
    return Control(path.name, kind, network, image, float(scale), span or ControlInterval(), schedule, features)


def combined(
    controls: Sequence[Control],
    x: Float[Tensor, "batch channels height width"],
    t: int,
    text: TextFeatures,
    time_ids: Float[Tensor, "batch 6"],
) -> Residuals | None:
    """The sum of several; None without any, so that the UNet runs as if there were no controls."""
    if not controls:
        return None
    first, *others = (control.residuals(x, t, text, time_ids) for control in controls)
    return sum(others, first)


def _check_class(wanted: str, folder: Path) -> None:
    """Before its configuration is read as that of another class: unions and XS have settings of their own."""
    if folder.is_file():
        raise UserError(
            "This control is a file",
            where=str(folder),
            rule="Controls are folders as diffusers writes them: config.json and safetensors",
            fix="Load the file with diffusers' from_single_file and write it with save_pretrained",
        )
    said = read_json(folder / "config.json").get("_class_name", wanted)
    if said != wanted:
        raise UserError(f"This is a {said!a:.60}", where=str(folder), rule=f"A {wanted} is read here, no other class")


def _check_controlnet(network: ControlNetModel, unet: UNet, where: str) -> None:
    names = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
    names += ("projection_class_embeddings_input_dim", "addition_time_embed_dim", "transformer_layers_per_block")
    for name in names:
        theirs, ours = _plain(network.config[name]), _plain(unet.config[name])
        if theirs != ours:
            raise UserError(
                f"{name} of this ControlNet is {theirs}, the UNet's is {ours}",
                where=where,
                rule="A ControlNet is a copy of the first half of the UNet that it was trained with",
                fix="Use a ControlNet made for SDXL models",
            )
    if network.config["in_channels"] > unet.config["in_channels"]:
        raise UserError(f"This ControlNet reads {network.config['in_channels']} latent channels", where=where)


def _features(network: T2IAdapter, image: Tensor, components: Components, where: str) -> tuple[Tensor, ...]:
    divisor = cast(int, network.total_downscale_factor)
    if any(side % divisor for side in image.shape[-2:]):
        raise UserError(
            f"The image of this T2I-Adapter is {_size(image.shape[-2:])}",
            where=where,
            rule=f"Its sides must be multiples of {divisor}",
            fix="Draw at such a size",
        )
    with torch.no_grad():
        features = tuple(cast(list[Tensor], network(image)))
    widths = [level.shape[1] for level in features]
    channels = list(cast(Sequence[int], components.unet.config["block_out_channels"]))
    # A fourth feature belongs to the middle.
    if widths != [*channels, channels[-1]]:
        raise UserError(
            f"This T2I-Adapter gives {widths} channels, the UNet's levels have {channels}",
            where=where,
            rule="One feature per level and one for the middle, as in T2I-Adapters of SDXL (full_adapter_xl)",
        )
    # Added after the downsampler of the first level, which has no attention, and before those of the others.
    halvings = [1, *range(1, len(channels)), len(channels) - 1]
    for level, halved in zip(features, halvings, strict=True):
        wanted = [-(-side // (components.vae.factor * 2**halved)) for side in image.shape[-2:]]
        if list(level.shape[-2:]) != wanted:
            raise UserError(
                f"This T2I-Adapter gives features of {_size(level.shape[-2:])} where the UNet's are {_size(wanted)}",
                where=where,
                rule="It halves an image once more than the VAE does, by 16 for SDXL (downscale_factor)",
                fix="Use a T2I-Adapter made for SDXL models",
            )
    return features


def _channels(network: nn.Module) -> int:
    config = cast(dict[str, Any], cast(Any, network).config)
    return cast(int, config["conditioning_channels" if isinstance(network, ControlNetModel) else "in_channels"])


def _rows(tensor: Tensor, count: int) -> Tensor:
    """One row per input; with guidance the images come once for the prompt and once more for the negative."""
    if count % len(tensor):
        raise ValueError(f"{len(tensor)} control images for {count} rows")
    return tensor.repeat(count // len(tensor), *(1,) * (tensor.ndim - 1))


def _plain(value: object) -> object:
    return tuple(cast(Sequence[object], value)) if isinstance(value, list | tuple) else value


def _size(sides: Sequence[int]) -> str:
    return f"{sides[1]}x{sides[0]}"
