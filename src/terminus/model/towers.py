"""CLIP towers and tokenizers on disk.

transformers has renamed the keys of `CLIPTextModel` (older files say `text_model.`, new ones do not). We read both
and always write the older form, which every consumer knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

from terminus.errors import UserError
from terminus.model.text import TextTowers
from terminus.model.weights import fill, in_precision, read_json, read_tensors

_PREFIX = "text_model."
_STEM = "model"
Tower = TypeVar("Tower", bound=nn.Module)


def load_towers(folder: Path) -> TextTowers:
    """Both text towers of a diffusers SDXL folder, float32, in evaluation mode."""
    towers = TextTowers(
        load_tokenizer(folder / "tokenizer"),
        load_tokenizer(folder / "tokenizer_2"),
        _load(CLIPTextModel, CLIPTextConfig, folder / "text_encoder"),
        _load(CLIPTextModelWithProjection, CLIPTextConfig, folder / "text_encoder_2"),
    )
    for tokenizer, tower in ((towers.tokenizer_1, towers.tower_1), (towers.tokenizer_2, towers.tower_2)):
        length, positions = tokenizer.model_max_length, tower.config.max_position_embeddings
        if length > positions or len(tokenizer) > tower.config.vocab_size:
            raise UserError(
                f"A tokenizer gives {length} tokens out of {len(tokenizer)}, "
                f"its text tower reads {positions} out of {tower.config.vocab_size}",
                where=str(folder),
                rule="model_max_length and the vocabulary of a tokenizer must fit its text encoder",
            )
    return towers


def save_towers(towers: TextTowers, folder: Path, dtype: torch.dtype) -> None:
    """Writes `tokenizer`, `tokenizer_2`, `text_encoder` and `text_encoder_2`."""
    for name, tokenizer in (("tokenizer", towers.tokenizer_1), ("tokenizer_2", towers.tokenizer_2)):
        save_tokenizer(tokenizer, folder / name)
    for name, tower in (("text_encoder", towers.tower_1), ("text_encoder_2", towers.tower_2)):
        _save(tower, folder / name, dtype)


def load_vision(folder: Path) -> CLIPVisionModelWithProjection:
    """The vision tower of a folder, float32, in evaluation mode."""
    return _load(CLIPVisionModelWithProjection, CLIPVisionConfig, folder)


def save_vision(tower: CLIPVisionModelWithProjection, folder: Path, dtype: torch.dtype) -> None:
    """Writes the vision tower, the image half of the contrastive pair."""
    _save(tower, folder, dtype)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer from `vocab.json` and `merges.txt`, or from `tokenizer.json` where only that exists."""
    settings = read_json(folder / "tokenizer_config.json")
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        vocabulary, merges = folder / "tokenizer.json", folder / "tokenizer.json"
        model = read_json(vocabulary).get("model", {})
        vocab = model.get("vocab", {})
        # Older files write a pair as one text.
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", [])]
    else:
        vocab = read_json(vocabulary)
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return build_tokenizer(
        cast(dict[str, int], vocab), cast(list[tuple[str, str]], pairs),
        length=int(settings.get("model_max_length", 77)), pad=_text(settings.get("pad_token", "<|endoftext|>")),
    )  # fmt: skip


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
    return str(cast(dict[str, Any], token)["content"]) if isinstance(token, dict) else str(token)


def _load(cls: type[Tower], config_class: type[PretrainedConfig], folder: Path) -> Tower:
    # An "attention implementation" may name a repository on the hub, whose code transformers would fetch and run.
    settings = {k: v for k, v in read_json(folder / "config.json").items() if not k.endswith("_implementation")}
    try:
        tower = cls(config_class.from_dict(settings))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        where = str(folder / "config.json")
        raise UserError(f"This configuration does not describe a {cls.__name__} ({error})", where=where) from error
    stored = read_tensors(folder, _STEM)
    bare = {key.removeprefix(_PREFIX): value for key, value in stored.items()}
    prefixed = any(key.startswith(_PREFIX) for key in tower.state_dict())
    tensors = {(_PREFIX + key if prefixed and _inner(key) else key): value for key, value in bare.items()}
    # Buffers of old files (`position_ids`) are constants that the class makes itself.
    tensors = {key: value for key, value in tensors.items() if not key.endswith("position_ids")}
    fill(tower, tensors, str(folder))
    return tower.eval().requires_grad_(False)


def _save(tower: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    is_text = isinstance(tower, CLIPTextModel | CLIPTextModelWithProjection)
    for key, value in tower.state_dict().items():
        bare = key.removeprefix(_PREFIX)
        name = _PREFIX + bare if is_text and _inner(bare) else key
        tensors[name] = in_precision(name, value, dtype)
    save_file(tensors, folder / f"{_STEM}.safetensors", metadata={"format": "pt"})
    cast(Any, tower).config.architectures = [type(tower).__name__]
    cast(Any, tower).config.save_pretrained(folder)


def _inner(key: str) -> bool:
    return not key.startswith("text_projection")
