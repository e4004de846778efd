"""Limits on the sizes that a model's files state: one table, asked before a network is built.

One line of a configuration is enough to keep a computer busy until its memory is gone: `num_hidden_layers: 1000000`.
A limit here is far above any model of SDXL's classes, and far below what does harm. That a configuration is the one of
its weights is a question of its own (`model.counts`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from terminus.errors import UserError

HEADER_BYTES = 100_000_000
"""Largest header of a safetensors file, in bytes; the limit of the format."""
JSON_BYTES = MERGES_BYTES = 16 * 2**20
"""Largest `.json` file and `merges.txt`, in bytes; those of SDXL have 3 MB and 0.5 MB."""
SIDE_CAR_BYTES = 64_000
"""Largest `.yaml` beside a single file, in bytes; those that exist have under 4,000."""
VOCABULARY = 1_000_000
"""Entries of a tokenizer, and merges; CLIP has 49,408."""
TIMESTEPS = 100_000
"""Most timesteps of a noise schedule; all that exist have 1,000."""
PIXELS = 4096
"""The side of the square image that a model was trained on; SDXL's is 1,024."""
LEVELS = 8
"""Resolutions of a network, and so entries of most lists; SDXL's UNet has 3, its VAE 4."""
BLOCKS = 1000
"""Transformer blocks of a UNet, were each level as its largest; SDXL's would then be 150."""


@dataclass(frozen=True)
class Limit:
    """Bounds of the number, or of each number of the list, under one key."""

    least: int | float
    most: int | float
    whole: bool = True
    entries: int = 0
    """Most entries of a list; 0 where a list cannot stand."""
    empty: bool = False
    """Whether null may stand there."""
    bare: bool = True
    """Whether one number may stand there, where a list can."""
    nested: bool = False
    """Whether entries may be lists: an asymmetric UNet has its transformer layers by level and block."""


def _floats(least: int | float, most: int | float, empty: bool = False) -> Limit:
    return Limit(least, most, whole=False, empty=empty)


_WIDTH = Limit(1, 65_536, entries=LEVELS, bare=False)
_MAYBE = Limit(1, 65_536, empty=True)
_HEADS = Limit(1, 1024, entries=LEVELS, empty=True)
_FACTOR = _floats(1e-4, 1e4)
_TOKEN = Limit(-1, VOCABULARY, empty=True)

LIMITS: Mapping[str, Limit] = {
    # UNet, autoencoder, ControlNet, T2I-Adapter
    "sample_size": Limit(1, PIXELS, entries=2, empty=True),
    "in_channels": Limit(1, 1024),
    "out_channels": Limit(1, 1024),
    "conditioning_channels": Limit(1, 1024),
    "latent_channels": Limit(1, 1024),
    "block_out_channels": _WIDTH,
    "channels": _WIDTH,
    "conditioning_embedding_out_channels": _WIDTH,
    "layers_per_block": Limit(1, 16, entries=LEVELS),
    "num_res_blocks": Limit(1, 16),
    "downscale_factor": Limit(1, 64),
    "transformer_layers_per_block": Limit(0, 64, entries=LEVELS, nested=True),
    "reverse_transformer_layers_per_block": Limit(0, 64, entries=LEVELS, empty=True, nested=True),
    "cross_attention_dim": Limit(1, 65_536, entries=LEVELS, empty=True),
    "attention_head_dim": _HEADS,
    "num_attention_heads": _HEADS,
    "addition_embed_type_num_heads": _HEADS,
    "addition_time_embed_dim": _MAYBE,
    "projection_class_embeddings_input_dim": _MAYBE,
    "encoder_hid_dim": _MAYBE,
    "num_class_embeds": _MAYBE,
    "time_embedding_dim": _MAYBE,
    "time_cond_proj_dim": _MAYBE,
    "norm_num_groups": Limit(1, 1024, empty=True),
    "norm_eps": _floats(1e-12, 0.1),
    "conv_in_kernel": Limit(1, 15),
    "conv_out_kernel": Limit(1, 15),
    "freq_shift": _floats(0, 1),
    "downsample_padding": Limit(0, 8),
    "mid_block_scale_factor": _FACTOR,
    "resnet_out_scale_factor": _FACTOR,
    "dropout": _floats(0, 1),
    "scaling_factor": _FACTOR,
    "shift_factor": _floats(0, 0, empty=True),  # of FLUX's and SD 3's VAEs; SDXL's pipelines do not apply it
    "latents_mean": Limit(-1e4, 1e4, whole=False, entries=1024, empty=True, bare=False),
    "latents_std": Limit(1e-4, 1e4, whole=False, entries=1024, empty=True, bare=False),
    # CLIP text encoders
    "vocab_size": Limit(1, VOCABULARY),
    "hidden_size": Limit(1, 65_536),
    "intermediate_size": Limit(1, 262_144),
    "projection_dim": _MAYBE,
    "num_hidden_layers": Limit(1, 128),
    "max_position_embeddings": Limit(1, 4096),
    "num_channels": Limit(1, 1024),
    "image_size": Limit(1, PIXELS),
    "patch_size": Limit(1, PIXELS),
    "layer_norm_eps": _floats(1e-12, 0.1),
    "attention_dropout": _floats(0, 1, empty=True),
    "initializer_range": _floats(0, 100, empty=True),
    "initializer_factor": _floats(0, 100, empty=True),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": Limit(0, VOCABULARY),  # the pooled text is read at it
}
"""The limit of each key of a `config.json` that stands for a number."""
_LISTS = ("down_block_types", "up_block_types", "only_cross_attention")
"""Lists of other things, one entry per level."""


def check_limits(config: Mapping[str, object], network: str, where: str) -> None:
    """UserError for the first number of a network's `config.json` that is none, or is beyond its limit."""
    for key, limit in LIMITS.items():
        if key in config and not _holds(limit, config[key]):
            raise UserError(
                f"This configuration does not describe a {network} ({key} is {show_value(config[key])})",
                where=where,
                rule=f"{key} is {_rule(limit)}",
                fix="Use the model's own config.json",
            )
    _check_blocks(config, network, where)
    for key in _LISTS:
        value = config.get(key)
        if isinstance(value, list | tuple) and len(cast("list[object]", value)) > LEVELS:
            raise UserError(
                f"This configuration does not describe a {network} ({key} has "
                f"{len(cast('list[object]', value))} entries)",
                where=where,
                rule=f"A network has at most {LEVELS} levels",
            )


def _check_blocks(config: Mapping[str, object], network: str, where: str) -> None:
    layers, transformers = (_largest(config.get(f"{kind}_per_block")) for kind in ("layers", "transformer_layers"))
    channels = config.get("block_out_channels")
    levels = len(cast("list[object]", channels)) if isinstance(channels, list | tuple) else 4
    # At each level `layers` on the way down, and one more on the way up.
    blocks = levels * (2 * layers + 1) * transformers
    if blocks > BLOCKS:
        raise UserError(
            f"This configuration does not describe a {network} (it may have {blocks} transformer blocks)",
            where=where,
            rule=f"levels x (2 layers_per_block + 1) x transformer_layers_per_block is at most {BLOCKS}",
            fix="Use the model's own config.json",
        )


def _largest(value: object) -> int:
    """The number, or the largest in a list; 1 where there is none."""
    if isinstance(value, list | tuple):
        return max(map(_largest, cast("list[object]", value)), default=1)
    return value if isinstance(value, int) else 1


def show_value(value: object) -> str:
    """A value of a configuration, short enough for an error."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    if isinstance(value, list | tuple) and len(cast("list[object]", value)) > LEVELS:
        return f"a list of {len(cast('list[object]', value))} entries"
    return f"{value!r:.60}"


def _holds(limit: Limit, value: object) -> bool:
    if isinstance(value, list | tuple):
        entries = cast("list[object]", value)
        # An entry has the same bounds; it may be a list itself only where that is said, and only once.
        inside = replace(limit, entries=limit.entries if limit.nested else 0, empty=False, nested=False, bare=True)
        return 0 < len(entries) <= limit.entries and all(_holds(inside, entry) for entry in entries)
    if value is None:
        return limit.empty
    if isinstance(value, bool) or not isinstance(value, int if limit.whole else int | float):
        return False
    return limit.bare and limit.least <= cast(float, value) <= limit.most


def _rule(limit: Limit) -> str:
    kind = "a whole number" if limit.whole else "a number"
    rule = f"{kind} from {limit.least:g} to {limit.most:,.10g}"
    if limit.least == limit.most:
        rule = f"{limit.least:g}"
    if limit.entries and limit.bare:
        rule += f", or a list of at most {limit.entries} of them"
    elif limit.entries:
        rule = f"a list of at most {limit.entries} numbers, each {rule}"
    return f"{rule}, or null" if limit.empty else rule
