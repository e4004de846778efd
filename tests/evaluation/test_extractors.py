"""Extractors of local folders: CLIP and DINO as transformers scales and runs them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from terminus.errors import UserError
from terminus.evaluation.distribution.extractors import load_extractor
from terminus.model.naming import SHIPPED

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 60, 3), (64, 48, 3), (32, 32, 3))]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for file in (SHIPPED["nano"] / "tokenizer").iterdir():
        shutil.copy(file, folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    text = {**SMALL, "vocab_size": len(vocabulary), "max_position_embeddings": 77, "eos_token_id": len(vocabulary) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    about = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 36}, "crop_size": 28}))
    return folder


def test_clip_is_that_of_transformers(clip: Path):
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    extractor = load_extractor(str(clip))
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    captions = ["a red apple", "a green pear on a plate"]
    with torch.no_grad():
        pixels = torch.cat([torch.as_tensor(np.stack(processor(one).pixel_values)) for one in IMAGES])
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels.float())
    assert np.allclose(extractor.images(IMAGES), normalize(out.image_embeds, dim=1).numpy(), atol=1e-4)
    assert np.allclose(extractor.captions(captions), normalize(out.text_embeds, dim=1).numpy(), atol=1e-4)
    assert extractor.name == f"CLIP ({clip.name})"
    assert extractor.preparation == "shorter side to 32 pixels by Pillow's bicubic filter, middle 32×32"


def test_dino_gives_its_class_token(dino: Path):
    extractor = load_extractor(str(dino))
    assert (extractor.kind, extractor.unit, extractor.read) == ("DINO", False, None)
    assert extractor.images(IMAGES).shape == (3, 16)
    assert "to 36 pixels" in extractor.preparation
    assert "middle 28×28" in extractor.preparation
    model = Dinov2Model.from_pretrained(dino).eval()
    plain = np.full((36, 36, 3), 130, np.uint8)
    pixels = (130 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        token = model(pixel_values=pixels[None, :, None, None].expand(1, 3, 28, 28)).last_hidden_state[:, 0]
    assert np.allclose(extractor.images([plain]), token.numpy(), atol=1e-4)


def test_weights_that_are_missing_are_named(clip: Path, tmp_path: Path):
    folder = Path(shutil.copytree(clip, tmp_path / "cut"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, the first is visual_projection.weight"):
        load_extractor(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        load_extractor(str(folder))


def test_nan_in_weights_is_found_in_the_features(dino: Path, tmp_path: Path):
    folder = Path(shutil.copytree(dino, tmp_path / "nan"))
    tensors = load_file(folder / "model.safetensors")
    tensors["layernorm.bias"] = torch.full_like(tensors["layernorm.bias"], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"features of 3 images hold NaN"):
        load_extractor(str(folder)).images(IMAGES)


def test_what_is_no_extractor_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="No weights are here"):
        load_extractor(str(tmp_path / "inception.safetensors"))
    with pytest.raises(UserError, match="No folder is here"):
        load_extractor(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match=r"model_type is 'gpt2'.*Known: clip"):
        load_extractor(str(tmp_path))


def test_a_file_of_another_network_is_not_inception(tmp_path: Path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="keys are missing"):
        load_extractor(str(tmp_path / "other.safetensors"))
