"""Whether a configuration is the one of its weights: every count it states beside the tensors of the file's header.

A network is built from its configuration, so this comes first: nothing is built of 1,000,000 layers for weights that
have 12. What is compared is what decides how much is built, and the widths that name the likely mistake.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from terminus.errors import UserError
from terminus.model import limits

Shapes = Mapping[str, Sequence[int]]
"""Shapes of one network's tensors, under the names that diffusers or transformers give them now."""


class Count(NamedTuple):
    """One count: what the configuration states, and what the tensors are. `stated` is None where it says nothing."""

    key: str
    stated: object
    stored: int | None
    """None where the tensor that would tell is missing, which loading says better."""
    what: str
    """The thing that is counted, in the plural."""


def check_counts(network: str, config: Mapping[str, object], shapes: Shapes, where: str) -> None:
    """UserError unless the `config.json` of a class of diffusers or transformers is that of these tensors.

    `network` is the name of the class. The limits of `model.limits` are checked first.
    """
    limits.check_limits(config, network, where)
    if network == "UNet2DConditionModel":
        _check_kind(config, where)
    if (config.get("latents_mean") is None) != (config.get("latents_std") is None):
        raise UserError(
            "Only one of latents_mean and latents_std is there", where=where,
            rule="Latents are centred by both: (latents - latents_mean) * scaling_factor / latents_std",
        )  # fmt: skip
    _check_heads(config, where)
    # What is stated, beside what the tensors have.
    stored = _Stored(shapes)
    wrong = [
        f"{one.key} is {limits.show_value(one.stated)}, the weights have {one.stored} {one.what}"
        for one in COUNTS[network](config, stored)
        if one.stated is not None and one.stored is not None and one.stated != one.stored
    ]
    if wrong:
        raise UserError(
            f"The weights do not fit their configuration: {'; '.join(dict.fromkeys(wrong[:3]))}",
            where=where,
            rule="Every count of a configuration is compared with the tensors before a network is built",
            fix="Use the config.json that belongs to these weights, or get the weights that are missing",
        )


class _Stored:
    """A file's tensors, counted."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self._inside: dict[str, set[str]] = defaultdict(set)
        # Modules of a list are numbered: names under `blocks.0.` and `blocks.1.` are two entries of `blocks`.
        for name in shapes:
            parts = name.split(".")
            for depth, part in enumerate(parts):
                if part.isascii() and part.isdigit():
                    self._inside[".".join(parts[:depth])].add(part)

    def count(self, prefix: str) -> int:
        """Entries of a list of modules."""
        return len(self._inside.get(prefix, ()))

    def side(self, name: str, axis: int) -> int | None:
        """One side of a tensor; None if it is not there."""
        shape = self.shapes.get(name)
        return shape[axis] if shape is not None and axis < len(shape) else None

    def any_side(self, ending: str, axis: int) -> int | None:
        """One side of the first tensor whose name ends so."""
        return next((self.side(name, axis) for name in self.shapes if name.endswith(ending)), None)


def _unet(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    yield from _way_down(config, stored)
    channels, layers = _list(config.get("block_out_channels")), config.get("layers_per_block")
    if channels is None:
        return
    levels = len(channels)
    yield Count("block_out_channels", levels, stored.count("up_blocks"), "levels on the way up")
    # The way up begins at the bottom, and has one residual block more in each level.
    for level in range(levels):
        down = _at(layers, levels - 1 - level)
        blocks = down + 1 if isinstance(down, int) else None
        found = stored.count(f"up_blocks.{level}.resnets")
        yield Count("layers_per_block", blocks, found, f"residual blocks in level {level} on the way up")
    yield Count("out_channels", config.get("out_channels"), stored.side("conv_out.weight", 0), "output channels")


def _controlnet(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    yield from _way_down(config, stored)
    widths, key = _list(config.get("conditioning_embedding_out_channels")), "conditioning_embedding_out_channels"
    if widths is not None:
        # Two convolutions lead from each level to the next.
        found = stored.count("controlnet_cond_embedding.blocks") // 2 + 1
        yield Count(key, len(widths), found, "levels of the embedding of the image")
    found = stored.side("controlnet_cond_embedding.conv_in.weight", 1)
    yield Count("conditioning_channels", config.get("conditioning_channels"), found, "channels of the image")


def _way_down(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    """Counts that a UNet and the ControlNets made of it share: the way down, and the middle."""
    yield Count("in_channels", config.get("in_channels"), stored.side("conv_in.weight", 1), "input channels")
    channels, layers = _list(config.get("block_out_channels")), config.get("layers_per_block")
    transformers, types = config.get("transformer_layers_per_block"), _list(config.get("down_block_types")) or []
    for level, width in enumerate(channels or ()):
        block = f"down_blocks.{level}"
        found = stored.side(f"{block}.resnets.0.conv1.weight", 0)
        yield Count("block_out_channels", width, found, f"channels in level {level}")
        found = stored.count(f"{block}.resnets")
        yield Count("layers_per_block", _at(layers, level), found, f"residual blocks in level {level}")
        # A level without attention has no transformer blocks, whatever is stated.
        if "CrossAttn" in str(types[level] if level < len(types) else ""):
            for number in range(max(1, stored.count(f"{block}.attentions"))):
                found = stored.count(f"{block}.attentions.{number}.transformer_blocks")
                stated = _at(_at(transformers, level), number)
                yield Count("transformer_layers_per_block", stated, found, f"transformer blocks in level {level}")
    if channels is not None:
        yield Count("block_out_channels", len(channels), stored.count("down_blocks"), "levels")
        middle = _at(_at(transformers, len(channels) - 1), 0)
        found = stored.count("mid_block.attentions.0.transformer_blocks")
        yield Count("transformer_layers_per_block", middle, found, "transformer blocks in the middle")
    for key, name in (
        ("cross_attention_dim", "attn2.to_k.weight"),
        ("projection_class_embeddings_input_dim", "add_embedding.linear_1.weight"),
    ):
        # A list, with an entry for each level, is not compared.
        stated = config.get(key)
        yield Count(key, None if isinstance(stated, list) else stated, stored.any_side(name, 1), "inputs")


def _vae(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    channels, layers = _list(config.get("block_out_channels")), config.get("layers_per_block")
    # The decoder has one residual block more in each level, and its first level is that of the latent.
    for half, blocks, more in (("encoder", "down_blocks", 0), ("decoder", "up_blocks", 1)):
        if channels is not None:
            found = stored.count(f"{half}.{blocks}")
            yield Count("block_out_channels", len(channels), found, f"levels of the {half}")
        for level, width in enumerate(channels or ()):
            place = f"{half}.{blocks}.{level if more == 0 else len(channels or ()) - 1 - level}"
            found = stored.side(f"{place}.resnets.0.conv1.weight", 0)
            yield Count("block_out_channels", width, found, f"channels in level {level} of the {half}")
            stated = layers + more if isinstance(layers, int) else None
            found = stored.count(f"{place}.resnets")
            yield Count("layers_per_block", stated, found, f"residual blocks in level {level} of the {half}")
    latent = stored.side("decoder.conv_in.weight", 1)
    yield Count("latent_channels", config.get("latent_channels"), latent, "latent channels")
    for key, name, axis in (("in_channels", "encoder.conv_in", 1), ("out_channels", "decoder.conv_out", 0)):
        yield Count(key, config.get(key), stored.side(f"{name}.weight", axis), "channels of the image")
    for key in ("latents_mean", "latents_std"):
        numbers = _list(config.get(key))
        yield Count(key, None if numbers is None else len(numbers), latent, "latent channels")


def _t2i(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    channels, blocks = _list(config.get("channels")), config.get("num_res_blocks")
    levels = stored.count("adapter.body") - (config.get("adapter_type") == "light_adapter")  # which has one more
    yield Count("channels", None if channels is None else len(channels), levels, "levels")
    for level in range(min(levels, limits.LEVELS)):
        found = stored.count(f"adapter.body.{level}.resnets")
        yield Count("num_res_blocks", blocks, found, f"residual blocks in level {level}")


def _text_encoder(config: Mapping[str, object], stored: _Stored) -> Iterator[Count]:
    """A text or vision encoder, with or without `text_model.` before its names."""
    bare = _Stored({name.removeprefix("text_model.").removeprefix("vision_model."): shape
                    for name, shape in stored.shapes.items()})  # fmt: skip
    first, tokens = "encoder.layers.0", "embeddings.token_embedding.weight"
    patches, positions = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    yield Count("num_hidden_layers", config.get("num_hidden_layers"), bare.count("encoder.layers"), "layers")
    for key, name, axis, what in (
        ("vocab_size", tokens, 0, "tokens"),
        ("hidden_size", f"{first}.layer_norm1.weight", 0, "channels"),
        ("intermediate_size", f"{first}.mlp.fc1.weight", 0, "channels between"),
        ("max_position_embeddings", positions, 0, "positions"),
        ("projection_dim", "text_projection.weight", 0, "projected channels"),
        ("projection_dim", "visual_projection.weight", 0, "projected channels"),
        ("num_channels", patches, 1, "channels of the image"),
        ("patch_size", patches, 2, "pixels along a patch"),
    ):
        yield Count(key, config.get(key), bare.side(name, axis), what)
    image, patch = config.get("image_size"), config.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int):
        yield Count("image_size", (image // patch) ** 2 + 1, bare.side(positions, 0), "patches and the class token")
    vocabulary = config.get("vocab_size")
    # An id beyond the vocabulary would be read outside of the embedding.
    for key in ("bos_token_id", "eos_token_id"):
        for token in _list(config.get(key)) or [config.get(key)]:
            if isinstance(token, int) and isinstance(vocabulary, int) and token >= vocabulary:
                yield Count(key, token, vocabulary, "tokens, counted from 0")


COUNTS: Mapping[str, Callable[[Mapping[str, object], _Stored], Iterator[Count]]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _vae,
    "ControlNetModel": _controlnet,
    "T2IAdapter": _t2i,
    "CLIPTextModel": _text_encoder,
    "CLIPTextModelWithProjection": _text_encoder,
    "CLIPVisionModelWithProjection": _text_encoder,
}
"""By the name of the class; a class that is built from a configuration of others has an entry here."""

_SDXLS: Mapping[str, tuple[object, ...]] = {
    "addition_embed_type": ("text_time",),
    "time_embedding_type": ("positional", None),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None,),
}


def _check_kind(config: Mapping[str, object], where: str) -> None:
    """Other UNets of diffusers' class want other inputs, which would be found out only when something is drawn."""
    for key, known in _SDXLS.items():
        if config.get(key) not in known:
            raise UserError(
                f"This configuration does not describe a UNet of SDXL ({key} is {limits.show_value(config.get(key))})",
                where=where,
                rule=f"SDXL's UNets read the time, the text and six sizes: {key} is {known[0] or 'not set'}",
            )


def _check_heads(config: Mapping[str, object], where: str) -> None:
    """No tensor tells how many heads an attention has; they share its channels equally."""
    key = "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    widths = _list(config.get("block_out_channels")) or [config.get("hidden_size")]
    for level, width in enumerate(widths):
        heads = _at(config.get(key), level)  # the first is diffusers' historic name for the number of heads
        if isinstance(heads, int) and isinstance(width, int) and width % heads:
            raise UserError(
                f"The {width} channels of level {level} are not shared by {heads} heads",
                where=where,
                rule=f"{key} divides the channels of its level",
                fix="Use the config.json that belongs to these weights",
            )


def _list(value: object) -> list[object] | None:
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else None


def _at(value: object, index: int) -> object:
    """The entry of a list; of a number for all entries, the number; None for what is not there."""
    entries = _list(value)
    if entries is None:
        return value
    return entries[index] if index < len(entries) else None
