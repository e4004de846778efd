"""Networks that turn images into features for judging: CLIP and DINO of a local folder or the hub, safetensors only.

A folder is one as transformers writes it: `config.json`, weights, and `preprocessor_config.json`, which says how images
are scaled. No class is taken from what the folder names: the kinds are listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
)

from terminus.errors import UserError
from terminus.model.naming import parse_hub_id
from terminus.model.weights import read_json

CLIP, DINO = "CLIP", "DINO"
_KINDS: Mapping[str, tuple[str, type[nn.Module]]] = {
    "clip": (CLIP, CLIPModel),
    "clip_vision_model": (CLIP, CLIPVisionModelWithProjection),
    "dinov2": (DINO, Dinov2Model),
    "dinov2_with_registers": (DINO, Dinov2WithRegistersModel),
    "dinov3_vit": (DINO, DINOv3ViTModel),
}
"""`model_type` of config.json to the kind of features and the class."""
_MEAN = {CLIP: (0.48145466, 0.4578275, 0.40821073), DINO: (0.485, 0.456, 0.406)}
_STD = {CLIP: (0.26862954, 0.26130258, 0.27577711), DINO: (0.229, 0.224, 0.225)}
"""Of the colour channels in 0..1, where preprocessor_config.json says nothing."""
_RULE = (
    "Features are those of a folder or hub id of a CLIP or DINO model that transformers wrote, with config.json and "
    "safetensors; of a .safetensors file of FID's Inception; or `nano`"
)


@dataclass(frozen=True)
class EncoderInput:
    """How an image becomes a network's input."""

    shorter: int
    """Pixels of the shorter side, by Pillow's bicubic filter."""
    side: int
    """Pixels of the square that is cut from the middle."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def words(self) -> str:
        """The same for people."""
        return f"shorter side to {self.shorter} pixels by Pillow's bicubic filter, middle {self.side}×{self.side}"

    def prepared(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "batch 3 side side"]:
        """A batch of images of any sizes."""
        rows = np.stack([self._square(image) for image in images]).astype(np.float32) / 255.0
        normalised = (rows - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))

    def _square(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        # The longer side is cut to whole pixels as CLIP's own processor does.
        size = [int(self.shorter * length / min(height, width)) for length in (width, height)]
        scaled = np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BICUBIC))
        top, left = ((length - self.side) // 2 for length in scaled.shape[:2])
        return scaled[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class FeatureEncoder:
    """A network with its scaling; CLIP's reads captions too."""

    kind: str
    """`CLIP` or `DINO`."""
    folder: Path
    scaling: EncoderInput
    network: nn.Module
    tokenizer: Callable[..., Any] | None

    @torch.no_grad()
    def see(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], device: torch.device) -> Float[Tensor, "batch width"]:
        """CLIP's projected embedding, or DINO's normalised class token."""
        pixels = self.scaling.prepared(images).to(device)
        network = cast(Any, self.network)
        if isinstance(self.network, CLIPModel):
            states = network.vision_model(pixel_values=pixels)
            return cast(Tensor, network.visual_projection(states.pooler_output))
        if isinstance(self.network, CLIPVisionModelWithProjection):
            return cast(Tensor, network(pixel_values=pixels).image_embeds)
        return cast(Tensor, network(pixel_values=pixels).last_hidden_state[:, 0])

    @torch.no_grad()
    def read(self, captions: Sequence[str], device: torch.device) -> Float[Tensor, "batch width"]:
        """CLIP's projected embedding of each caption; what is longer than it reads is cut."""
        assert self.tokenizer is not None, "the caller has looked"
        network = cast(Any, self.network)
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(device)
        states = network.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return cast(Tensor, network.text_projection(states.pooler_output))


def load_feature_encoder(name: str) -> FeatureEncoder:
    """The network of a local folder or a hub id; UserError for what is neither, or of another kind."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name)
    if not (folder / "config.json").is_file():
        raise UserError("This folder has no config.json", where=str(folder), rule=_RULE)
    config = read_json(folder / "config.json")
    kind, cls = _kind(config, folder)
    if not [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        raise UserError("This folder has no weights in safetensors", where=str(folder), rule=_RULE, fix="Convert them")
    network, tokenizer = _loaded(cls, folder), None
    if isinstance(network, CLIPModel):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            what = f"CLIP's tokenizer cannot be read ({_first_line(error)})"
            raise UserError(what, where=str(folder), rule="CLIP's text half reads captions") from None
    return FeatureEncoder(kind, folder, _scaling(config, kind, folder), network, tokenizer)


def _fetched(name: str) -> Path:
    model = parse_hub_id(name)
    if model is None or model.file is not None:
        raise UserError("No folder is here", where=name, rule=_RULE)
    patterns = ["*.json", "merges.txt", "model*.safetensors"]
    try:
        return Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=patterns))
    except (HTTPError, HFValidationError, OSError) as error:
        what = f"No folder has this name, and the hub gives no model of it ({_first_line(error)})"
        raise UserError(what, where=name, rule=_RULE) from error


def _kind(config: Mapping[str, Any], folder: Path) -> tuple[str, type[nn.Module]]:
    known = _KINDS.get(str(config.get("model_type")))
    if known is None:
        what = f"model_type is {config.get('model_type')!r:.60}"
        raise UserError(what, where=str(folder / "config.json"), rule=f"Known: {', '.join(_KINDS)}")
    return known


def _loaded(cls: type[nn.Module], folder: Path) -> nn.Module:
    try:
        network, about = cast(Any, cls).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"These weights cannot be read ({_first_line(error)})", where=str(folder), rule=_RULE) from None
    missing = sorted(about["missing_keys"])
    if missing:
        # transformers would fill them with random numbers, and every distance would be of noise.
        raise UserError(f"{len(missing)} weights are missing, the first is {missing[0]}", where=str(folder), rule=_RULE)
    return network.eval().requires_grad_(False)


def _scaling(config: Mapping[str, Any], kind: str, folder: Path) -> EncoderInput:
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.is_file() else {}
    pixels = cast(Mapping[str, Any], config.get("vision_config") or config).get("image_size", 224)
    side = _pixels(said.get("crop_size"), int(pixels)) if said.get("do_center_crop", True) else None
    shorter = _pixels(said.get("size"), side or int(pixels))
    numbers = [tuple(said.get(key) or usual[kind]) for key, usual in (("image_mean", _MEAN), ("image_std", _STD))]
    return EncoderInput(max(shorter, side or shorter), side or shorter, numbers[0], numbers[1])


def _pixels(said: object, usual: int) -> int:
    """A size in any of the ways in which preprocessor_config.json says it."""
    if isinstance(said, Mapping):
        found = cast(Mapping[str, Any], said)
        said = found.get("shortest_edge") or found.get("height")
    return said if isinstance(said, int) and said > 0 else usual


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
