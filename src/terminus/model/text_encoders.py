"""CLIP text encoders and tokenizers on disk.

transformers has renamed the keys of `CLIPTextModel` (older files say `text_model.`, new ones do not). We read both
and always write the older form, which every consumer knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

from terminus.errors import UserError
from terminus.model import limits
from terminus.model.record import write_json
from terminus.model.text import TextEncoders
from terminus.model.weights import BROKEN, assign, misconfigured, read_config, read_json, read_tensors
from terminus.model.writing import write_safetensors

_PREFIX = "text_model."
_STEM = "model"
_SETTINGS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps",
    "attention_dropout", "initializer_range", "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
"""All that a text encoder is built from. transformers takes more from a file than describes one: `num_labels:
1000000000`
fills the memory with names, `return_dict: false` changes what a call answers, and an "attention implementation" may
name a repository on the hub, whose code would be fetched and run."""
TextEncoder = TypeVar("TextEncoder", bound=nn.Module)


def check_tokenizers(text_encoders: TextEncoders, where: str) -> None:
    """UserError unless every token id and position that the tokenizers give has an embedding."""
    for tokenizer, text_encoder in (
        (text_encoders.tokenizer_1, text_encoders.text_encoder_1),
        (text_encoders.tokenizer_2, text_encoders.text_encoder_2),
    ):
        length, positions = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
        if length > positions or len(tokenizer) > text_encoder.config.vocab_size:
            raise UserError(
                f"A tokenizer gives {limits.show_value(length)} tokens out of {len(tokenizer)}, "
                f"its text encoder reads {positions} out of {text_encoder.config.vocab_size}",
                where=where,
                rule="model_max_length and the vocabulary of a tokenizer must fit its text encoder",
            )


def save_text_encoders(text_encoders: TextEncoders, folder: Path, dtype: torch.dtype) -> None:
    """Writes `tokenizer`, `tokenizer_2`, `text_encoder` and `text_encoder_2`."""
    for name, tokenizer in (("tokenizer", text_encoders.tokenizer_1), ("tokenizer_2", text_encoders.tokenizer_2)):
        save_tokenizer(tokenizer, folder / name)
    for name, text_encoder in (
        ("text_encoder", text_encoders.text_encoder_1),
        ("text_encoder_2", text_encoders.text_encoder_2),
    ):
        _save(text_encoder, folder / name, dtype)


def load_vision(folder: Path) -> CLIPVisionModelWithProjection:
    """The vision encoder of a folder, float32, in evaluation mode."""
    return load_text_encoder(CLIPVisionModelWithProjection, CLIPVisionConfig, folder)


def save_vision(vision: CLIPVisionModelWithProjection, folder: Path, dtype: torch.dtype) -> None:
    """Writes the vision encoder, the image half of the contrastive pair."""
    _save(vision, folder, dtype)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's settings, entries and merges."""

    settings: dict[str, Any]
    """The content of `tokenizer_config.json`."""
    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]

    def tokenizer(self) -> CLIPTokenizer:
        """A CLIP tokenizer of this vocabulary, ready to use."""
        length, token = self.settings.get("model_max_length", 77), self.settings.get("pad_token", "<|endoftext|>")
        pad = _text(token)
        if not isinstance(length, int | float) or length < 3 or pad not in self.ids:
            raise UserError(
                f"This tokenizer pads with {limits.show_value(token)} to {limits.show_value(length)} tokens",
                rule="pad_token is an entry of its vocabulary, model_max_length a number of at least 3",
            )
        return build_tokenizer(self.ids, list(self.merges), int(length), pad)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer from `vocab.json` and `merges.txt`, or from `tokenizer.json` where only that exists."""
    return read_vocabulary(folder).tokenizer()


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary that `load_tokenizer` makes its tokenizer of."""
    settings = read_json(folder / "tokenizer_config.json")
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        if vocabulary.is_file() and merges.is_file():
            size = merges.stat().st_size
            if size > limits.MERGES_BYTES:
                raise ValueError(f"merges.txt has {size} bytes, more than any tokenizer needs")
            lines = merges.read_text(encoding="utf-8").splitlines()
            pairs = [line for line in lines if line and not line.startswith("#version")]
            return make_vocabulary(settings, read_json(vocabulary), pairs)
        # Newer folders may have both in one file.
        model = cast(dict[str, object], read_json(folder / "tokenizer.json").get("model", {}))
        return make_vocabulary(settings, model.get("vocab", {}), model.get("merges", []))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"This tokenizer is not readable ({error})", where=str(folder)) from error


def make_vocabulary(settings: dict[str, Any], ids: object, merges: object) -> Vocabulary:
    """A vocabulary from JSON, in which a merge is a pair or (in older files) one text; ValueError if it is broken."""
    if not isinstance(ids, dict) or not isinstance(merges, list):
        raise ValueError("a vocabulary is an object, its merges are a list")
    entries, listed = cast("dict[object, object]", ids), cast("list[object]", merges)
    # Counted before anything goes through them.
    most = max(len(listed), len(entries))
    if most > limits.VOCABULARY:
        raise ValueError(f"it has {most} entries, and at most {limits.VOCABULARY} are read")
    known = {str(entry): number for entry, number in entries.items() if isinstance(number, int)}
    pairs = tuple(_pair(merge, known) for merge in listed)
    if sorted(known.values()) != list(range(len(entries))):
        raise ValueError("the ids of a vocabulary are 0, 1, 2 and so on")
    return Vocabulary(settings, known, pairs)


def _pair(merge: object, known: Mapping[str, int]) -> tuple[str, str]:
    """The two entries that a merge joins; ValueError unless they and the joined one are known."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(pair, list) and len(cast("list[object]", pair)) == 2:
        first, second = cast("list[object]", pair)
        if isinstance(first, str) and isinstance(second, str) and {first, second, first + second} <= known.keys():
            return first, second
    raise ValueError(f"the merge {str(pair)[:80]} joins entries that the vocabulary does not have")


def build_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], length: int, pad: str) -> CLIPTokenizer:
    """A CLIP tokenizer; the end-of-text token must have the highest id."""
    make = cast(Callable[..., CLIPTokenizer], CLIPTokenizer)  # its annotations know merges as text only
    tokenizer = make(vocab=vocab, merges=merges, model_max_length=length, pad_token=pad)
    highest = max(vocab.values(), default=-1)
    if tokenizer.eos_token_id != highest:
        raise UserError(
            f"The end-of-text token has id {tokenizer.eos_token_id}, the highest id is {highest}",
            rule="CLIP pools at the end-of-text token and expects it last in the vocabulary",
        )
    return tokenizer


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the current files and the older `vocab.json` + `merges.txt`, which other loaders ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    # How it was last called is no part of it, or the same model would be written in two ways.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    pairs = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n", encoding="utf-8")


def _text(token: object) -> str:
    """Old tokenizer configurations store a token as an object with its content."""
    content = cast(dict[str, object], token).get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def load_text_encoder(cls: type[TextEncoder], config_class: type[PretrainedConfig], folder: Path) -> TextEncoder:
    config = read_config(cls.__name__, folder, _STEM)
    return make_text_encoder(cls, config_class, config, read_tensors(folder, _STEM), str(folder))


def make_text_encoder(
    cls: type[TextEncoder],
    config_class: type[PretrainedConfig],
    config: Mapping[str, Any],
    stored: Mapping[str, Tensor] | None,
    where: str,
) -> TextEncoder:
    """A text encoder of this configuration with these weights, float32 and in evaluation mode; for None on the meta
    device.
    """
    limits.check_limits(config, cls.__name__, where)
    settings = {key: value for key, value in config.items() if key in _SETTINGS}
    try:
        with torch.device("meta"):
            text_encoder = cls(config_class.from_dict(settings))
    except (StrictDataclassError, *BROKEN) as error:
        raise misconfigured(cls.__name__, error, where) from error
    if stored is not None:
        assign(text_encoder, text_encoder_keys(text_encoder, stored), where)
    return text_encoder.eval().requires_grad_(False)


def text_encoder_keys(text_encoder: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, of the older or the newer form, under the names of this transformers."""
    # Without the prefix first, then with it where this transformers has it.
    prefixed = any(key.startswith(_PREFIX) for key in text_encoder.state_dict())
    bare = {key.removeprefix(_PREFIX): value for key, value in stored.items()}
    tensors = {(_PREFIX + key if prefixed and _inner(key) else key): value for key, value in bare.items()}
    # Buffers of old files (`position_ids`) are constants that the class makes itself.
    return {key: value for key, value in tensors.items() if not key.endswith("position_ids")}


def older_keys(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a text encoder's file under the names that every consumer knows."""
    return {older_key(key): value for key, value in stored.items() if not key.endswith("position_ids")}


def older_key(key: str) -> str:
    """A parameter's name that every consumer knows, whichever transformers gave it."""
    bare = key.removeprefix(_PREFIX)
    return _PREFIX + bare if _inner(bare) else bare


def _save(text_encoder: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    is_text = isinstance(text_encoder, CLIPTextModel | CLIPTextModelWithProjection)
    named = older_keys(text_encoder.state_dict()) if is_text else text_encoder.state_dict()
    write_safetensors(folder / f"{_STEM}.safetensors", named, {"format": "pt"}, dtype)
    config = cast(PretrainedConfig, text_encoder.config)
    write_json(
        folder / "config.json",
        text_encoder_config(config.to_diff_dict() | {"architectures": [type(text_encoder).__name__]}),
    )


def text_encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a text encoder as we write it: loaded in float32 where nobody says otherwise.

    transformers would load it as it is stored, diffusers loads its own parts in float32, and the two do not multiply.
    `torch_dtype` is the older name, which the newer one overrides.
    """
    return {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "float32"}


def _inner(key: str) -> bool:
    return not key.startswith("text_projection")
