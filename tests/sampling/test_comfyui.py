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
    assert said == comfyui.GraphFacts("a bottle", "watermark", SIMPLE_SETTINGS)


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
    assert (said.prompt, said.negative) == ("a fox\nstyle", "ugly")
    expected = {"Seed": "5", "Steps": "12", "CFG scale": "4.5", "Sampler": "uni_pc", "Passes": "2", "Size": "64x32"}
    assert said.settings == {**expected, "Schedule type": "sgm_uniform", "Denoising strength": "1"}


def ksampler(**inputs: Any) -> dict[str, Any]:
    common = {"seed": 7, "steps": 20, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal"}
    return {"class_type": "KSampler", "inputs": {**common, "positive": ["2", 0], "latent_image": ["3", 0], **inputs}}


def test_base_and_refiner_are_two_passes_of_which_the_first_is_told():
    """As the published SDXL example: KSamplerAdvanced twice, the second without noise of its own."""
    graph = {
        "1": ksampler(noise_seed=9, latent_image=["2", 0], positive=["8", 0], negative=["9", 0], model=["12", 0]),
        "3": ksampler(noise_seed=5, latent_image=["5", 0], positive=["6", 0], negative=["7", 0], model=["4", 0]),
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 832, "height": 1216, "batch_size": 1}},
        "6": {
            "class_type": "CLIPTextEncodeSDXL",
            "inputs": {"width": 4096, "height": 4096, "text_g": "a fox", "text_l": "a fox", "clip": ["4", 1]},
        },
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
        "8": {"class_type": "CLIPTextEncodeSDXLRefiner", "inputs": {"ascore": 6.0, "text": "finer"}},
        "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "worse"}},
        "2": {"class_type": "LatentPassThrough", "inputs": {"samples": ["3", 0]}},
        "12": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "refiner.safetensors"}},
    }
    said = comfyui.understand(graph)
    assert said is not None
    assert (said.prompt, said.negative) == ("a fox", "bad")
    assert {key: said.settings[key] for key in ("Seed", "Model", "Size", "Passes")} == {
        **{"Seed": "5", "Model": "base.safetensors", "Size": "832x1216", "Passes": "2"},
    }


@pytest.mark.parametrize("through", ["positive", "sdxl_tuple"])
def test_loaders_that_hold_the_prompts_themselves(through: str):
    """Efficiency nodes: texts, size and an empty LoRA slot are inputs of the loader."""
    held = {"positive": "a castle", "negative": "blur", "lora_name": "None", "lora_model_strength": 1}
    size = {"empty_latent_width": 832, "empty_latent_height": 1216, "batch_size": 1}
    loader = {"class_type": "Efficient Loader", "inputs": {"ckpt_name": "m.safetensors", **held, **size}}
    links = {"positive": ["1", 1], "negative": ["1", 2], "model": ["1", 0], "latent_image": ["1", 3]}
    sampler = ksampler(**links)
    if through != "positive":
        sampler = ksampler(latent_image=["1", 1], sdxl_tuple=["1", 0])
        del sampler["inputs"]["positive"]
    said = comfyui.understand({"1": loader, "2": sampler})
    assert said is not None
    assert (said.prompt, said.negative) == ("a castle", "blur")
    assert (said.settings["Model"], said.settings["Size"]) == ("m.safetensors", "832x1216")
    assert "Loras" not in said.settings


def test_links_are_followed_to_texts_numbers_and_loras():
    graph = {
        "1": ksampler(steps=["10", 0], seed=["11", 0], negative=["4", 0], model=["12", 0]),
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["5", 0]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": ["13", 0], "height": 64, "batch_size": 1}},
        "4": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}},
        "5": {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": "a dog", "string_b": ["6", 0], "delimiter": ", "},
        },
        "6": {"class_type": "ShowText|pysssss", "inputs": {"text": ["7", 0], "text_0": "as it was before"}},
        "7": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "on grass"}},
        "10": {"class_type": "PrimitiveInt", "inputs": {"value": 31}},
        "11": {"class_type": "Seed (rgthree)", "inputs": {"seed": 991}},
        "12": {
            "class_type": "Power Lora Loader (rgthree)",
            "inputs": {
                "lora_1": {"on": True, "lora": "ink.safetensors", "strength": 0.5},
                "lora_2": {"on": False, "lora": "wet.safetensors", "strength": 1},
            },
        },
        "13": {"class_type": "PrimitiveInt", "inputs": {"value": 96}},
    }
    said = comfyui.understand(graph)
    assert said is not None
    assert (said.prompt, said.negative) == ("a dog, on grass", "")  # zeroed: the prompt has no say in it
    read = {key: said.settings[key] for key in ("Steps", "Seed", "Size", "Loras")}
    assert read == {"Steps": "31", "Seed": "991", "Size": "96x64", "Loras": "ink.safetensors: 0.5"}


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
        {"s": {"class_type": "KSampler", "inputs": {"positive": ["0", 0], "seed": 1, "steps": 1,
                                                    "latent_image": ["0", 0]}}}
        | {str(n): {"class_type": "Join", "inputs": {f"text_{key}": [str((n + step) % 300), 0]
                                                     for step, key in enumerate("abcdefghi")}} for n in range(300)},
    ],
    ids=["list", "empty", "number", "odd types", "itself", "huge numbers", "ring", "texts of texts"],
)  # fmt: skip
def test_a_graph_that_makes_no_sense_does_no_harm(graph: Any):
    start = time.process_time()
    said = comfyui.understand(graph)
    assert said is None or (said.prompt, said.negative) == ("", "")
    assert time.process_time() - start < 2
