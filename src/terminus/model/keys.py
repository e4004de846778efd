"""Names of the same parameters in diffusers and LDM (the layout of single files), as tables.

One `KeyMap` per network, built from its numbers of levels and layers, read in both directions. Three things are more
than a name: open_clip keeps query, key and value in one matrix and its projection transposed, and the autoencoder's
attention is made of 1 × 1 convolutions there and of linear layers here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from torch import Tensor

from terminus.errors import UserError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.transformer."
OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."

_NODE = re.compile("")
"""A block, named as a whole: adapters attach to these."""
_LEAF = re.compile(r"(\.(weight|bias))?")
_NEVER = re.compile(r"(?!)")
_TRANSFORMER = re.compile(
    r"(\.(norm|proj_in|proj_out|transformer_blocks(\.\d+(\.(norm[1-3]|attn[12](\.(to_[qkv]|to_out(\.0)?))?"
    r"|ff(\.net(\.(0(\.proj)?|2))?)?))?)?)(\.(weight|bias))?)?"
)
"""Below an attention block of the UNet both layouts use the same names."""
_CLIP_TEXT = re.compile(
    r"\.(embeddings\.(token|position)_embedding\.weight|final_layer_norm\.(weight|bias)"
    r"|encoder\.layers\.\d+\.(layer_norm[12]|mlp\.fc[12]|self_attn\.([qkv]|out)_proj)\.(weight|bias))"
)


@dataclass(frozen=True)
class Entry:
    """A module here and there; `tail` is what may follow either name."""

    here: str
    there: str
    tail: re.Pattern[str] = _LEAF


@dataclass(frozen=True)
class KeyMap:
    """The names of one network; `to_ldm` and `from_ldm` are inverse to each other, bit for bit."""

    component: str
    prefix: str
    """In front of every LDM key of this network."""
    entries: tuple[Entry, ...]
    convolutions: frozenset[str] = frozenset()
    """Weights (diffusers' names) that are [out, in] here and [out, in, 1, 1] there."""
    transposed: Mapping[str, str] = field(default_factory=dict[str, str])
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """LDM parameter -> the parameters here that it is made of, one above the other."""
    ignored: re.Pattern[str] = _NEVER
    """Constants that old files carry and that no network here has."""
    unused: re.Pattern[str] = _NEVER
    """Stored names (prefix included) of heads and trainers that SDXL has no use for; `from_ldm` is not given them."""
    present: Callable[[str], str] = str
    """LDM's name, from one that some program wrote in its place; both without the prefix."""

    def ldm_name(self, name: str) -> str:
        """The LDM name of a parameter or a module, without the prefix; KeyError where there is none."""
        return self.transposed.get(name) or _translate(name, self._there)

    def diffusers_name(self, name: str) -> str:
        """The inverse of `ldm_name`."""
        return self._untransposed.get(name) or _translate(name, self._here)

    def to_ldm(self, tensors: Mapping[str, Tensor], where: str = "") -> dict[str, Tensor]:
        """All of the network's tensors under LDM names, prefix included.

        UserError, which tells `where` they are from, when one has no name there.
        """
        left = {name: value for name, value in tensors.items() if not self.ignored.search(name)}
        result: dict[str, Tensor] = {}
        # Matrices that LDM keeps as one (query, key and value), or transposed.
        for name, parts in self.fused.items():
            if left.keys() >= set(parts):
                result[name] = _stack([left.pop(part) for part in parts], f"{self.component}: {name}")
        for here, there in self.transposed.items():
            if here in left:
                result[there] = left.pop(here).T.contiguous()
        # Linear layers that LDM has as convolutions of one pixel.
        for name in self.convolutions & left.keys():
            if left[name].ndim == 2:
                left[name] = left[name][:, :, None, None]
        result |= self._renamed(left, self.ldm_name, "the LDM layout", where)
        return {self.prefix + name: value for name, value in result.items()}

    def from_ldm(self, tensors: Mapping[str, Tensor], where: str = "") -> dict[str, Tensor]:
        """The inverse of `to_ldm`; other networks' keys (another prefix) are passed over."""
        left = self._own(tensors, where)
        result: dict[str, Tensor] = {}
        # One matrix has query, key and value one above the other.
        for name, parts in self.fused.items():
            if name in left:
                pieces = left.pop(name).chunk(len(parts), dim=0)
                result |= {part: piece.contiguous() for part, piece in zip(parts, pieces, strict=True)}
        for there, here in self._untransposed.items():
            if there in left:
                result[here] = left.pop(there).T.contiguous()
        result |= self._renamed(left, self.diffusers_name, "diffusers", where)
        # Convolutions of one pixel become linear layers.
        for name in self.convolutions & result.keys():
            if result[name].shape[2:] == (1, 1):
                result[name] = result[name][:, :, 0, 0].contiguous()
        return result

    def _own(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The network's tensors under LDM's present names, without prefix."""
        own: dict[str, Tensor] = {}
        for stored, value in tensors.items():
            if stored.startswith(self.prefix) and not self.ignored.search(stored):
                name = self.present(stored.removeprefix(self.prefix))
                if name in own:
                    raise UserError(f"{name} of the {self.component} is there under two names", where=where)
                own[name] = value
        return own

    def _renamed(
        self, tensors: Mapping[str, Tensor], rename: Callable[[str], str], layout: str, where: str
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        unknown: list[str] = []
        for name, value in tensors.items():
            try:
                result[rename(name)] = value
            except KeyError:
                unknown.append(name)
        if unknown:
            raise UserError(
                f"{len(unknown)} keys of the {self.component} have no name in {layout}: "
                f"{', '.join(sorted(unknown)[:3])}{', ...' if len(unknown) > 3 else ''}",
                where=where,
                rule="Every tensor of SDXL's networks is converted, none is left out",
            )
        return result

    @cached_property
    def _there(self) -> dict[str, tuple[str, re.Pattern[str]]]:
        return {entry.here: (entry.there, entry.tail) for entry in self.entries}

    @cached_property
    def _here(self) -> dict[str, tuple[str, re.Pattern[str]]]:
        return {entry.there: (entry.here, entry.tail) for entry in self.entries}

    @cached_property
    def _untransposed(self) -> dict[str, str]:
        return {there: here for here, there in self.transposed.items()}


def _translate(name: str, table: Mapping[str, tuple[str, re.Pattern[str]]]) -> str:
    """The longest entry that `name` begins with, and the rest of it, if the entry allows such a rest."""
    # From the whole name backwards, part by part: the longest entry decides.
    end = len(name)
    while end > 0:
        if found := table.get(name[:end]):
            if found[1].fullmatch(name[end:]):
                return found[0] + name[end:]
            break
        end = name.rfind(".", 0, end)
    raise KeyError(name)


def _stack(parts: list[Tensor], name: str) -> Tensor:
    if len({part.dtype for part in parts}) > 1:
        raise UserError(f"{name} is made of tensors of several precisions", fix="Name one precision for the result")
    return torch.cat(parts, dim=0)


def ldm_unet_name(name: str, layers: int = 2, levels: int = 3) -> str:
    """LDM's name of a diffusers UNet parameter or module, without `model.diffusion_model.`; KeyError for others."""
    return unet_map(levels, layers).ldm_name(name)


_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


@cache
def unet_map(levels: int = 3, layers: int = 2) -> KeyMap:
    """SDXL's UNet: `layers` residual blocks a level on the way down, one more on the way up; no attention on top."""

    def block(here: str, there: str) -> Iterator[Entry]:
        yield Entry(here, there, _NODE)
        yield from (Entry(f"{here}.{mine}", f"{there}.{theirs}") for mine, theirs in _UNET_RESNET.items())

    def entries() -> Iterator[Entry]:
        yield Entry("conv_in", "input_blocks.0.0")
        for here, there in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
            yield from (Entry(f"{here}.linear_1", f"{there}.0"), Entry(f"{here}.linear_2", f"{there}.2"))
        # Down: a block there is a layer here, and after each level one is its downsampler.
        for level in range(levels):
            for layer in range(layers):
                there = f"input_blocks.{(layers + 1) * level + layer + 1}"
                yield from block(f"down_blocks.{level}.resnets.{layer}", f"{there}.0")
                if level > 0:
                    yield Entry(f"down_blocks.{level}.attentions.{layer}", f"{there}.1", _TRANSFORMER)
            if level < levels - 1:
                there = f"input_blocks.{(layers + 1) * (level + 1)}.0.op"
                yield Entry(f"down_blocks.{level}.downsamplers.0.conv", there)
        yield from block("mid_block.resnets.0", "middle_block.0")
        yield Entry("mid_block.attentions.0", "middle_block.1", _TRANSFORMER)
        yield from block("mid_block.resnets.1", "middle_block.2")
        # Up: the upsampler belongs to the last block of its level.
        for level in range(levels):
            for layer in range(layers + 1):
                there = f"output_blocks.{(layers + 1) * level + layer}"
                yield from block(f"up_blocks.{level}.resnets.{layer}", f"{there}.0")
                if level < levels - 1:
                    yield Entry(f"up_blocks.{level}.attentions.{layer}", f"{there}.1", _TRANSFORMER)
            if level < levels - 1:
                there = f"output_blocks.{(layers + 1) * level + layers}.2.conv"
                yield Entry(f"up_blocks.{level}.upsamplers.0.conv", there)
        yield from (Entry("conv_norm_out", "out.0"), Entry("conv_out", "out.2"))

    return KeyMap("UNet", UNET_PREFIX, tuple(entries()))


_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


_VAE_EARLY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern_vae_name(name: str) -> str:
    """diffusers' present name of a parameter of its autoencoder, from any name that it ever had."""
    head, found, tail = name.partition(".attentions.0.")
    module, _, parameter = tail.rpartition(".")
    return f"{head}{found}{_VAE_EARLY.get(module, module)}.{parameter}" if found else name


def _ldm_vae_name(name: str) -> str:
    """Converters between the layouts have left diffusers' names of the attention's parts, early and present, in LDM."""
    head, found, tail = name.partition(".mid.attn_1.")
    module, _, parameter = tail.rpartition(".")
    module = _VAE_EARLY.get(module, module)
    return f"{head}{found}{_VAE_ATTENTION.get(module, module)}.{parameter}" if found else name


@cache
def vae_map(levels: int = 4, layers: int = 2) -> KeyMap:
    """The autoencoder: LDM counts the decoder's levels from the pixels, diffusers from the latent."""

    def block(here: str, there: str) -> Iterator[Entry]:
        yield from (Entry(f"{here}.{mine}", f"{there}.{theirs}") for mine, theirs in _VAE_RESNET.items())

    def entries() -> Iterator[Entry]:
        yield from (Entry("quant_conv", "quant_conv"), Entry("post_quant_conv", "post_quant_conv"))
        for half in ("encoder", "decoder"):
            yield from (Entry(f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out"))
            yield Entry(f"{half}.conv_norm_out", f"{half}.norm_out")
            for number in (0, 1):
                yield from block(f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}")
            attention = f"{half}.mid_block.attentions.0"
            yield from (Entry(f"{attention}.{a}", f"{half}.mid.attn_1.{b}") for a, b in _VAE_ATTENTION.items())
        for level in range(levels):
            down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
            for layer in range(layers):
                yield from block(f"encoder.down_blocks.{level}.resnets.{layer}", f"{down}.block.{layer}")
            for layer in range(layers + 1):
                yield from block(f"decoder.up_blocks.{level}.resnets.{layer}", f"{up}.block.{layer}")
            if level < levels - 1:
                yield Entry(f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv")
                yield Entry(f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{up}.upsample.conv")

    # The attention's layers, which are convolutions of one pixel there.
    convolutions = frozenset(
        f"{half}.mid_block.attentions.0.{name}.weight"
        for half in ("encoder", "decoder")
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    )
    unused = re.compile(rf"^{re.escape(VAE_PREFIX)}(loss|model_ema)\.")  # its discriminator, and its own average
    return KeyMap("VAE", VAE_PREFIX, tuple(entries()), convolutions, unused=unused, present=_ldm_vae_name)


@cache
def clip_map() -> KeyMap:
    """The first text encoder: the names of transformers, of which newer ones have lost `text_model.`, behind a
    prefix.
    """
    return KeyMap(
        "first text encoder",
        CLIP_PREFIX,
        (Entry("text_model", "text_model", _CLIP_TEXT),),
        ignored=re.compile(r"position_ids$"),
        unused=re.compile(rf"^{re.escape(CLIP_PREFIX)}(text_projection\.|logit_scale$)"),  # SDXL reads its context only
        present=lambda name: name if name.startswith("text_model.") else f"text_model.{name}",
    )


_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@cache
def open_clip_map(layers: int = 32) -> KeyMap:
    """The second text encoder, in the layout of open_clip; keys here begin with `text_model.` (the projection's do
    not).

    open_clip multiplies by `text_projection`, transformers by its transpose.
    """

    def entries() -> Iterator[Entry]:
        yield Entry("text_model.embeddings.token_embedding", "token_embedding")
        yield Entry("text_model.embeddings.position_embedding.weight", "positional_embedding", _NODE)
        yield Entry("text_model.final_layer_norm", "ln_final")
        yield Entry("text_projection", "text_projection")  # as `.weight` it is a linear layer's, transposed already
        for layer in range(layers):
            here, there = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            yield from (Entry(f"{here}.{a}", f"{there}.{b}") for a, b in _OPEN_CLIP_LAYER.items())

    fused = {
        f"transformer.resblocks.{layer}.attn.in_proj_{kind}": tuple(
            f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"
        )
        for layer in range(layers)
        for kind in ("weight", "bias")
    }
    return KeyMap(
        "second text encoder",
        OPEN_CLIP_PREFIX,
        tuple(entries()),
        transposed={"text_projection.weight": "text_projection"},
        fused=fused,
        ignored=re.compile(r"(position_ids|logit_scale)$"),
    )
