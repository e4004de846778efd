"""Pictures that steer a drawing: ControlNet, T2I-Adapter, IP-Adapter, each with its picture and strength.

A guide is what a user names. Its networks are read once for all the pictures of a stream, and act only inside the calls
of the UNet: between two calls it is the UNet that was loaded, so that a stream may stop anywhere, or wait for another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.control import Control, Span, load_control
from terminus.model.control import Kind as ControlKind
from terminus.model.image_prompt import (
    ImageFeatures,
    ImagePrompt,
    ImagePrompts,
    clip_pixels,
    encode_pictures,
    read_image_prompt,
)
from terminus.model.text_encoders import load_vision
from terminus.model.unet import UNet
from terminus.model.weights import at_home
from terminus.sampling.canvas import Picture, Pixels, digest, open_picture
from terminus.sampling.files import sha256
from terminus.sampling.generation_metadata import ControlUse
from terminus.sampling.limits import check_name

Kind = Literal["controlnet", "t2i", "ip"]
_ALWAYS = Span()
KINDS: tuple[Kind, ...] = ("controlnet", "t2i", "ip")


@dataclass(frozen=True, eq=False)
class Guide:
    """One network and the picture that it looks at."""

    kind: str
    """One of KINDS."""
    source: str | Path
    """A diffusers folder; for "ip" the .safetensors file, with its vision tower in `image_encoder` beside it."""
    picture: Picture
    """Of the same whole as the picture that is drawn: it is scaled and cropped to what is drawn of that."""
    scale: float = 1.0
    span: Span = _ALWAYS
    """When it acts, from noise (0) to picture (1); "ip" acts always."""

    def __post_init__(self) -> None:
        check_name("control of kind", self.kind, KINDS)
        if self.kind == "ip" and self.span != _ALWAYS:
            raise UserError("An IP-Adapter for a part of the way", rule="It acts all the way; lower its scale instead")


class Guides:
    """The networks of several guides. UserError for one that cannot be read or does not fit this model."""

    def __init__(self, guides: Sequence[Guide], components: Components) -> None:
        self._components = components
        self._seen = [(guide, open_picture(guide.picture)) for guide in guides]
        self._networks: dict[int, Control] = {}
        prompts = [(guide, pixels) for guide, pixels in self._seen if guide.kind == "ip"]
        self._prompting = _prompting(prompts, components) if prompts else None
        self.uses = tuple(_use(guide, pixels) for guide, pixels in self._seen)
        """What a finished picture says of them."""

    def on(self, place: Callable[[Pixels], Pixels]) -> Loaded:
        """The guides for one canvas; `place` cuts from a picture of the whole what lies on the canvas."""
        steering = [(index, *one) for index, one in enumerate(self._seen) if one[0].kind != "ip"]
        return Loaded([self._control(index, guide, place(seen)) for index, guide, seen in steering], self._prompting)

    def _control(self, index: int, guide: Guide, pixels: Pixels) -> Control:
        picture, known = _signal(pixels), self._networks.get(index)
        if known is not None and known.kind == "controlnet":  # a T2I-Adapter is its features of one picture
            return replace(known, picture=picture.to(known.picture.device))
        kind = cast(ControlKind, guide.kind)
        control = load_control(kind, guide.source, picture, self._components, guide.scale, guide.span)
        self._networks[index] = control
        return control


@dataclass(frozen=True, eq=False)
class Loaded:
    """Guides as the network calls them."""

    controls: Sequence[Control] = ()
    prompting: Prompting | None = None

    def __bool__(self) -> bool:
        return bool(self.controls) or self.prompting is not None

    @contextmanager
    def image_prompts(self, batch: int, guided: bool) -> Generator[list[Tensor] | None]:
        """`image_embeds` of the UNet, which takes them within this context."""
        if self.prompting is None:
            yield None
        else:
            with self.prompting.attached():
                yield self.prompting.embeds(batch, guided)


class Prompting:
    """IP-Adapters that can be put on a UNet for a single call, which takes no more than changing references."""

    def __init__(self, prompts: Sequence[tuple[ImagePrompt, float]], features: Sequence[ImageFeatures], unet: UNet):
        self._features, self._unet = features, unet
        self._attentions = [cast(Any, module) for module in unet.modules() if hasattr(module, "set_processor")]
        with ImagePrompts(unet) as used:
            for prompt, scale in prompts:
                used.attach(prompt, scale)
            self._state = self._now()

    @contextmanager
    def attached(self) -> Generator[None]:
        """The UNet with them on; afterwards, with what it had before."""
        before = self._now()
        self._put(*self._state)
        try:
            yield
        finally:
            self._put(*before)

    def embeds(self, batch: int, guided: bool) -> list[Tensor]:
        """One entry per adapter."""
        return [one.rows(batch, guided).to(self._unet.device) for one in self._features]

    def _now(self) -> tuple[nn.Module | None, str | None, list[Any]]:
        unet = cast(Any, self._unet)
        processors = [attention.processor for attention in self._attentions]
        return unet.encoder_hid_proj, unet.config.encoder_hid_dim_type, processors

    def _put(self, projection: nn.Module | None, kind: str | None, processors: Sequence[Any]) -> None:
        unet = cast(Any, self._unet)
        unet.encoder_hid_proj = projection
        unet.config.encoder_hid_dim_type = kind
        for attention, processor in zip(self._attentions, processors, strict=True):
            attention.set_processor(processor)


def _prompting(guides: Sequence[tuple[Guide, Pixels]], components: Components) -> Prompting:
    prompts: list[tuple[ImagePrompt, float]] = []
    features: list[ImageFeatures] = []
    for guide, pixels in guides:
        prompt = read_image_prompt(guide.source, components.unet)
        vision = _vision(at_home(guide.source), components)
        seen = clip_pixels(_signal(pixels), cast(int, vision.config.image_size))
        features.append(encode_pictures(vision, seen, prompt))
        prompts.append((prompt, guide.scale))
    return Prompting(prompts, features, components.unet)


def _use(guide: Guide, pixels: Pixels) -> ControlUse:
    source = at_home(guide.source)
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    interval = None if guide.span == _ALWAYS else (guide.span.start, guide.span.end)
    name = source.stem if source.is_file() else source.resolve().name
    return ControlUse(guide.kind, name, float(guide.scale), digest(pixels), interval, sha256(files))


def _vision(source: Path, components: Components) -> CLIPVisionModelWithProjection:
    beside = source.parent / "image_encoder"
    if beside.is_dir():
        return load_vision(beside).to(components.text.device)  # pyright: ignore[reportArgumentType]
    if components.vision is None:
        raise UserError(
            "No vision tower for this IP-Adapter",
            where=str(source),
            rule="It reads pictures through the CLIP vision tower that it was trained with",
            fix="Put that tower's folder beside the file, named image_encoder",
        )
    return components.vision


def _signal(pixels: Pixels) -> Float[Tensor, "1 3 height width"]:
    """Pixels as these networks read them, 0 to 1."""
    return pixels.permute(2, 0, 1)[None].float() / 255
