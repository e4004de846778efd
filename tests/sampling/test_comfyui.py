"""Graphs of ComfyUI, read as data: plain ones, ones in parts, and ones that make no sense."""

from __future__ import annotations

import time
from typing import Any

import pytest

from terminus.sampling import comfyui

SIMPLE = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "noob-v.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["4", 1]}},
    "8": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.5, "model": ["4", 0]},
    },
    "9": {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"sampling": "v_prediction", "zsnr": True, "model": ["8", 0]},
    },
    "10": {"class_type": "RescaleCFG", "inputs": {"multiplier": 0.7, "model": ["9", 0]}},
    "11": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}
SIMPLE_SETTINGS = {
    "Seed": "156680208700286",
    "Steps": "20",
    "CFG scale": "8",
    "Sampler": "euler",
    "Schedule type": "normal",
    "Denoising strength": "1",
    "Size": "1024x512",
    "Model": "noob-v.safetensors",
    "Loras": "ink.safetensors: 0.5",
    "Prediction": "v_prediction",
    "Noise Schedule": "Zero Terminal SNR",
    "CFG rescale": "0.7",
}


def test_a_plain_graph():
    said = comfyui.understand(SIMPLE)
    assert said == comfyui.Reading("a bottle", "watermark", SIMPLE_SETTINGS)


def test_a_graph_in_parts_and_in_two_passes():
    graph: dict[str, Any] = {
        "1": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "2": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "uni_pc"}},
        "3": {"class_type": "BasicScheduler", "inputs": {"scheduler": "sgm_uniform", "steps": 12, "denoise": 1.0}},
        "4": {"class_type": "CFGGuider", "inputs": {"cfg": 4.5, "positive": ["6", 0], "negative": ["6", 1]}},
        "6": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {"positive": ["8", 0], "negative": ["9", 0], "strength": 0.5},
        },
        "8": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "a fox", "text_l": ["10", 0]}},
        "9": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0]}},
        "10": {"class_type": "PrimitiveString", "inputs": {"value": "style"}},
        "11": {"class_type": "PrimitiveString", "inputs": {"value": "ugly"}},
        "5": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["1", 0],
                "guider": ["4", 0],
                "sampler": ["2", 0],
                "sigmas": ["3", 0],
                "latent_image": ["12", 0],
            },
        },
        "12": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
        "20": {
            "class_type": "KSampler",
            "inputs": {"seed": 99, "steps": 3, "positive": ["8", 0], "negative": ["9", 0], "latent_image": ["21", 0]},
        },
        "21": {"class_type": "LatentUpscale", "inputs": {"samples": ["5", 0], "width": 128, "height": 64}},
    }
    said = comfyui.understand(graph)
    assert said is not None
    assert (said.prompt, said.negative) == ("a fox", "ugly")
    expected = {"Seed": "5", "Steps": "12", "CFG scale": "4.5", "Sampler": "uni_pc", "Passes": "2", "Size": "64x32"}
    assert said.settings == {**expected, "Schedule type": "sgm_uniform", "Denoising strength": "1"}


@pytest.mark.parametrize(
    "graph",
    [
        [],
        {},
        {"1": 3},
        {"1": {"class_type": ["KSampler"], "inputs": []}},
        {"1": {"class_type": "KSampler", "inputs": {"seed": [], "steps": {}, "latent_image": ["1", 0],
                                                    "positive": ["1", 0]}}},
        {"1": {"class_type": "KSampler", "inputs": {"seed": 1e400, "steps": 10**400, "latent_image": ["x", 0]}}},
        {str(n): {"class_type": "KSampler", "inputs": {"positive": [str((n + 1) % 200), 0], "seed": 1, "steps": 1,
                                                       "latent_image": [str((n + 7) % 200), 0]}} for n in range(200)},
    ],
    ids=["list", "empty", "number", "odd types", "itself", "huge numbers", "ring"],
)  # fmt: skip
def test_a_graph_that_makes_no_sense_does_no_harm(graph: Any):
    start = time.perf_counter()
    said = comfyui.understand(graph)
    assert said is None or (said.prompt, said.negative) == ("", "")
    assert time.perf_counter() - start < 2
