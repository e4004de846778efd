"""IP-Adapter (2308.06721): images as prompts, by a second set of keys and values in each cross-attention.

diffusers' attention processors do the work; here are the checks before, and the exact way back. While an adapter is
attached every call of the UNet needs `image_embeds`, one entry per adapter, in the order of attaching.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from terminus.errors import UserError
from terminus.model.unet import UNet
from terminus.model.weights import at_home, read_safetensors

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_PLAIN = {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}


@dataclass(frozen=True)
class ImageFeatures:
    """Input of an IP-Adapter: the images, and what stands for "no image" on the negative side."""

    conditional: Float[Tensor, "images *width"]
    unconditional: Float[Tensor, "images *width"]

    def rows(self, batch: int, guided: bool) -> Float[Tensor, "rows images *width"]:
        """All images for each row of the batch; with guidance a second, unconditional half follows."""
        halves = [self.conditional, self.unconditional] if guided else [self.conditional]
        return torch.cat([half[None].expand(batch, *half.shape) for half in halves])


@dataclass(frozen=True)
class ImagePrompt:
    """An IP-Adapter file, read and checked; `plus` says that it reads all patches rather than one vector."""

    name: str
    sha256: str
    plus: bool
    tensors: Mapping[str, Mapping[str, Tensor]]

    @property
    def width(self) -> int:
        """Numbers per image (or patch) that it reads from the vision encoder."""
        return self.tensors["image_proj"]["proj_in.weight" if self.plus else "proj.weight"].shape[1]


def read_image_prompt(path: str | Path, unet: UNet) -> ImagePrompt:
    """Reads a safetensors file with `image_proj.` and `ip_adapter.` keys for this UNet.

    UserError for keys or shapes that do not fit, and for kinds that need more than a vision encoder (FaceID).
    """
    file = at_home(path)
    stored, where = read_safetensors(file), str(file)
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    # Two parts: the projection of images, and layers for the UNet's cross-attentions.
    for key, value in stored.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise UserError(
                f"{key} is no key of an IP-Adapter", where=where, rule="image_proj. or ip_adapter. begin them"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{key} holds NaN or infinity", where=where)
        parts[part][name] = value.to(torch.float32)
    # Plus has queries of its own, called latents; the plain kind has a linear layer and a norm.
    projection, plus = parts["image_proj"], "latents" in parts["image_proj"]
    if not plus and projection.keys() != _PLAIN:
        raise UserError(
            "This kind of IP-Adapter is not known",
            where=where,
            rule="Known are the plain kind (image_proj.proj) and Plus (image_proj.latents), not FaceID",
        )
    _check_attention(parts["ip_adapter"], unet, where)
    _check_projection(projection, plus, unet, where)
    return ImagePrompt(file.stem, _sha256(file), plus, parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ImagePrompts:
    """The IP-Adapters of one UNet; as a context manager it takes all of them off at the end."""

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._used: list[tuple[ImagePrompt, float]] = []
        self._processors = dict(cast(Mapping[str, Any], unet.attn_processors))

    @property
    def attached(self) -> tuple[tuple[ImagePrompt, float], ...]:
        """With their scales, in the order in which `image_embeds` are expected."""
        return tuple(self._used)

    def attach(self, prompt: ImagePrompt, scale: float = 1.0) -> None:
        """Puts one more on the UNet."""
        if not math.isfinite(scale):
            raise UserError(f"The scale of an IP-Adapter is {scale}", rule="A scale is a finite number")
        self._used.append((prompt, float(scale)))
        self._install()

    def clear(self) -> None:
        """Takes all of them off: the very processors of before, and no projection."""
        if self._used:
            self._used.clear()
            self._restore()

    def embeds(self, features: Sequence[ImageFeatures], batch: int, guided: bool) -> list[Tensor] | None:
        """The argument `image_embeds` of `predict`: one `ImageFeatures` per attached adapter; None without any."""
        if len(features) != len(self._used):
            raise ValueError(f"{len(features)} sets of images for {len(self._used)} IP-Adapters")
        device = self._unet.device
        return [part.rows(batch, guided).to(device) for part in features] or None

    def __enter__(self) -> ImagePrompts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def _install(self) -> None:
        # From the beginning each time: diffusers converts all adapters at once.
        self._restore()
        # As diffusers' `_load_ip_adapter_weights`, which moves the whole UNet in the end, and warns of that.
        unet, tensors = cast(Any, self._unet), [dict(prompt.tensors) for prompt, _ in self._used]
        processors = cast(dict[str, Any], unet._convert_ip_adapter_attn_to_diffusers(tensors, low_cpu_mem_usage=False))
        projection = MultiIPAdapterImageProjection([_projection(unet, one["image_proj"]) for one in tensors])
        # Where the UNet is, in its format, and without gradients.
        for module in (*processors.values(), projection):
            if isinstance(module, nn.Module):
                module.to(unet.device, unet.dtype).requires_grad_(False).eval()
        for processor in processors.values():
            if isinstance(processor, nn.Module):
                cast(Any, processor).scale = [scale for _, scale in self._used]
        unet.set_attn_processor(processors)
        unet.encoder_hid_proj = projection
        unet.config.encoder_hid_dim_type = "ip_image_proj"

    def _restore(self) -> None:
        unet = cast(Any, self._unet)
        unet.encoder_hid_proj = None  # first: the one of Plus counts as attention layers
        unet.set_attn_processor(dict(self._processors))  # it empties the mapping that it is given
        unet.config.encoder_hid_dim_type = None


def encode_images(
    vision: CLIPVisionModelWithProjection, pixels: Float[Tensor, "images 3 height width"], prompt: ImagePrompt
) -> ImageFeatures:
    """Features of images prepared by `clip_pixels`. Without an image: zeros, or for Plus a black image's patches.

    UserError when the vision encoder's features are not of the width that the adapter was trained with.
    """
    pixels = pixels.to(next(vision.parameters()).device)
    with torch.no_grad():
        if prompt.plus:
            conditional, unconditional = (_patches(vision, each) for each in (pixels, torch.zeros_like(pixels)))
        else:
            conditional = cast(Tensor, vision(pixel_values=pixels).image_embeds)
            unconditional = torch.zeros_like(conditional)
    if conditional.shape[-1] != prompt.width:
        raise UserError(
            f"{prompt.name} reads {prompt.width} numbers, this vision encoder gives {conditional.shape[-1]}",
            rule="An IP-Adapter needs the vision encoder that it was trained with",
        )
    return ImageFeatures(conditional.float(), unconditional.float())


def clip_pixels(
    images: Float[Tensor, "images 3 height width"],
    side: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Float[Tensor, "images 3 side side"]:
    """Images in [0, 1] as CLIP's vision encoders read them: shorter edge to `side`, centre, standardised."""
    height, width = images.shape[-2:]
    edge = min(height, width)
    size = (max(side, round(height * side / edge)), max(side, round(width * side / edge)))
    resized = nn.functional.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    cropped = resized[..., top : top + side, left : left + side]
    shift, spread = (images.new_tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return (cropped - shift) / spread


def _patches(vision: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    return cast(tuple[Tensor, ...], vision(pixel_values=pixels, output_hidden_states=True).hidden_states)[-2]


def _check_attention(stored: Mapping[str, Tensor], unet: UNet, where: str) -> None:
    """Cross-attentions are numbered 1, 3, 5, ... in the order of diffusers' processors; self-attentions between."""
    expected: dict[str, tuple[int, ...]] = {}
    names = [name.removesuffix(".processor") for name in cast(Mapping[str, Any], unet.attn_processors)]
    for index, name in enumerate(name for name in names if not name.endswith("attn1")):
        # Keys and values of images are as large as those of the text.
        shape = tuple(unet.get_parameter(f"{name}.to_k.weight").shape)
        expected |= {f"{2 * index + 1}.{which}.weight": shape for which in ("to_k_ip", "to_v_ip")}
    wrong = sorted(expected.keys() ^ stored.keys())
    if wrong:
        raise UserError(
            f"{len(wrong)} keys are missing or unknown, the first is ip_adapter.{wrong[0]}",
            where=where,
            rule=f"This UNet has {len(expected) // 2} cross-attentions, each needs a key and a value of the adapter",
        )
    for key, shape in expected.items():
        if tuple(stored[key].shape) != shape:
            raise UserError(
                f"ip_adapter.{key} is {list(stored[key].shape)}, this UNet needs {list(shape)}",
                where=where,
                rule="An IP-Adapter fits the architecture that it was trained on",
            )


def _projection(unet: UNet, stored: Mapping[str, Tensor]) -> Any:
    return cast(Any, unet)._convert_ip_adapter_image_proj_to_diffusers(dict(stored), low_cpu_mem_usage=False)


def _check_projection(stored: Mapping[str, Tensor], plus: bool, unet: UNet, where: str) -> None:
    context = cast(int, unet.config["cross_attention_dim"])
    try:
        # diffusers builds the module from the shapes that it finds, and refuses what does not fill it.
        module = _projection(unet, stored)
        # The plain kind makes four tokens of an image in one product.
        width = stored["proj_out.weight"].shape[0] if plus else stored["proj.weight"].shape[0] / 4
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"The projection of this IP-Adapter is not whole ({error})", where=where) from error
    del module
    if width != context:
        raise UserError(
            f"This IP-Adapter writes a context of {width:g}, the UNet reads {context}",
            where=where,
            rule="An IP-Adapter fits the architecture that it was trained on",
        )
