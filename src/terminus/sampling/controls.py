"""Images that steer a drawing: ControlNet, T2I-Adapter, IP-Adapter, each with its image and strength.

A guide is what a user names. Its networks are read once for all the images of a stream, and act only inside the calls
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
from terminus.model.control import Control, ControlInterval, load_control
from terminus.model.control import Kind as ControlKind
from terminus.model.image_prompt import (
    ImageFeatures,
    ImagePrompt,
    ImagePrompts,
    clip_pixels,
    encode_images,
    read_image_prompt,
)
from terminus.model.text_encoders import load_vision
from terminus.model.unet import UNet
from terminus.model.weights import at_home
from terminus.sampling.canvas import ImageSource, Pixels, digest, open_image
from terminus.sampling.files import sha256
from terminus.sampling.generation_metadata import ControlUse
from terminus.sampling.limits import check_known

Kind = Literal["controlnet", "t2i", "ip"]
_ALWAYS = ControlInterval()
KINDS: tuple[Kind, ...] = ("controlnet", "t2i", "ip")


@dataclass(frozen=True, eq=False)
class ControlInput:
    """One network and the image that it looks at."""

    kind: str
    """One of KINDS."""
    source: str | Path
    """A diffusers folder; for "ip" the .safetensors file, with its vision encoder in `image_encoder` beside it."""
    image: ImageSource
    """An image of the whole that is drawn; where only a part is drawn, it is scaled and cropped alike."""
    scale: float = 1.0
    span: ControlInterval = _ALWAYS
    """When it acts, from noise (0) to image (1); "ip" acts always."""

    def __post_init__(self) -> None:
        check_known("control of kind", self.kind, KINDS)
        if self.kind == "ip" and self.span != _ALWAYS:
            raise UserError(
                "An IP-Adapter cannot act at some steps only", rule="It acts at every step; lower its scale instead"
            )


class ControlInputs:
    """The networks of several controls. UserError for one that cannot be read or does not fit this model."""

    def __init__(self, control_inputs: Sequence[ControlInput], components: Components) -> None:
        self._components = components
        self._seen = [(control_input, open_image(control_input.image)) for control_input in control_inputs]
        self._networks: dict[int, Control] = {}
        # IP-Adapters look at the whole image, wherever the canvas lies.
        prompts = [(control_input, pixels) for control_input, pixels in self._seen if control_input.kind == "ip"]
        self._prompting = _prompting(prompts, components) if prompts else None
        self.uses = tuple(_use(control_input, pixels) for control_input, pixels in self._seen)
        """Entries about these controls in a finished image's metadata."""

    def on(self, place: Callable[[Pixels], Pixels]) -> LoadedControls:
        """The controls for one canvas; `place` cuts from an image of the whole what lies on the canvas."""
        # The others see the part of their image that lies on the canvas.
        steering = [(index, *one) for index, one in enumerate(self._seen) if one[0].kind != "ip"]
        return LoadedControls(
            [self._control(index, control_input, place(seen)) for index, control_input, seen in steering],
            self._prompting,
        )

    def _control(self, index: int, control_input: ControlInput, pixels: Pixels) -> Control:
        image, known = _signal(pixels), self._networks.get(index)
        if known is not None and known.kind == "controlnet":  # a T2I-Adapter is its features of one image
            return replace(known, image=image.to(known.image.device))
        kind = cast(ControlKind, control_input.kind)
        control = load_control(
            kind, control_input.source, image, self._components, control_input.scale, control_input.span
        )
        self._networks[index] = control
        return control


@dataclass(frozen=True, eq=False)
class LoadedControls:
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
        # Put on once; the state that this makes is what `attached` puts on.
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
        # All that an IP-Adapter changes in a UNet: projection, one word of its configuration, processors.
        processors = [attention.processor for attention in self._attentions]
        return unet.encoder_hid_proj, unet.config.encoder_hid_dim_type, processors

    def _put(self, projection: nn.Module | None, kind: str | None, processors: Sequence[Any]) -> None:
        unet = cast(Any, self._unet)
        unet.encoder_hid_proj = projection
        unet.config.encoder_hid_dim_type = kind
        for attention, processor in zip(self._attentions, processors, strict=True):
            attention.set_processor(processor)


def _prompting(control_inputs: Sequence[tuple[ControlInput, Pixels]], components: Components) -> Prompting:
    prompts: list[tuple[ImagePrompt, float]] = []
    features: list[ImageFeatures] = []
    for control_input, pixels in control_inputs:
        prompt = read_image_prompt(control_input.source, components.unet)
        vision = _vision(at_home(control_input.source), components)
        seen = clip_pixels(_signal(pixels), cast(int, vision.config.image_size))
        features.append(encode_images(vision, seen, prompt))
        prompts.append((prompt, control_input.scale))
    return Prompting(prompts, features, components.unet)


def _use(control_input: ControlInput, pixels: Pixels) -> ControlUse:
    source = at_home(control_input.source)
    # A network in a folder may lie in several files, which are hashed as one.
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    interval = None if control_input.span == _ALWAYS else (control_input.span.start, control_input.span.end)
    name = source.stem if source.is_file() else source.resolve().name
    return ControlUse(control_input.kind, name, float(control_input.scale), digest(pixels), interval, sha256(files))


def _vision(source: Path, components: Components) -> CLIPVisionModelWithProjection:
    beside = source.parent / "image_encoder"
    # The one beside the file comes before the model's own.
    if beside.is_dir():
        return load_vision(beside).to(components.text_encoders.device)  # pyright: ignore[reportArgumentType]
    if components.vision is None:
        raise UserError(
            "No vision encoder for this IP-Adapter",
            where=str(source),
            rule="It reads images through the CLIP vision encoder that it was trained with",
            fix="Put that vision encoder's folder beside the file, named image_encoder",
        )
    return components.vision


def _signal(pixels: Pixels) -> Float[Tensor, "1 3 height width"]:
    """Pixels as these networks read them, 0 to 1."""
    return pixels.permute(2, 0, 1)[None].float() / 255
