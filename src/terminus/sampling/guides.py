"""Pictures that steer a drawing: ControlNet, T2I-Adapter, IP-Adapter, each with its picture and strength.

A guide is what a user names; `loaded` makes networks of it for as long as pictures of one size are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from terminus.conditioning import Size
from terminus.config.errors import did_you_mean
from terminus.errors import UserError
from terminus.model.components import Components
from terminus.model.control import Control, Span, load_control
from terminus.model.control import Kind as ControlKind
from terminus.model.image_prompt import ImageFeatures, ImagePrompts, clip_pixels, encode_pictures, read_image_prompt
from terminus.model.towers import load_vision
from terminus.sampling.canvas import Picture, digest, open_picture, scaled
from terminus.sampling.origin import ControlUse

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
    scale: float = 1.0
    span: Span = _ALWAYS
    """When it acts, from noise (0) to picture (1); "ip" acts always."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = did_you_mean(self.kind, KINDS)
            raise UserError(f"A control of kind {self.kind!r}", rule=f"Known: {', '.join(KINDS)}", fix=near)
        if self.kind == "ip" and self.span != _ALWAYS:
            raise UserError("An IP-Adapter for a part of the way", rule="It acts all the way; lower its scale instead")

    def use(self) -> ControlUse:
        """What a finished picture says of it."""
        interval = None if self.span == _ALWAYS else (self.span.start, self.span.end)
        name = Path(self.source).expanduser()
        seen = digest(open_picture(self.picture))
        return ControlUse(self.kind, name.stem if name.is_file() else name.name, self.scale, seen, interval)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Guides as the network calls them."""

    controls: Sequence[Control] = ()
    embeds: Callable[[int, bool], list[Tensor] | None] | None = None
    """(batch, guided) → `image_embeds` of the UNet."""


@contextmanager
def loaded(guides: Sequence[Guide], components: Components, size: Size) -> Generator[Loaded]:
    """The networks of all guides, for pictures of `size`; at the end the UNet is what it was."""
    steering = [guide for guide in guides if guide.kind != "ip"]
    controls = [
        load_control(
            cast(ControlKind, one.kind),
            one.source,
            _signal(one.picture, size),
            components,
            one.scale,
            one.span,
        )
        for one in steering
    ]
    prompts = [guide for guide in guides if guide.kind == "ip"]
    with ExitStack() as stack:
        embeds = _attached(prompts, components, stack.enter_context(ImagePrompts(components.unet))) if prompts else None
        yield Loaded(controls, embeds)


def _attached(
    guides: Sequence[Guide], components: Components, used: ImagePrompts
) -> Callable[[int, bool], list[Tensor] | None]:
    features: list[ImageFeatures] = []
    for guide in guides:
        prompt = read_image_prompt(guide.source, components.unet)
        vision = _vision(Path(guide.source).expanduser(), components)
        pixels = clip_pixels(_signal(guide.picture), cast(int, vision.config.image_size))
        features.append(encode_pictures(vision, pixels, prompt))
        used.attach(prompt, guide.scale)
    return lambda batch, guided: used.embeds(features, batch, guided)


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


def _signal(picture: Picture, size: Size | None = None) -> Float[Tensor, "1 3 height width"]:
    """0 to 1, at `size` if one is given: scaled to cover it, and cropped at the centre."""
    pixels = open_picture(picture)
    return (pixels if size is None else scaled(pixels, size)).permute(2, 0, 1)[None].float() / 255
