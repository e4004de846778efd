"""Labels of a single file for other programs: ModelSpec and kohya keys, marker tensors, a side-car.

No two programs look in the same place for velocity prediction and zero terminal SNR, so all of them are filled. What
the checkpoint does not record is left out.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float32
from torch import Tensor

from terminus.model.architecture import SDXL
from terminus.model.parts import CheckpointParts
from terminus.model.record import Schedule, noise_schedule
from terminus.model.writing import HASH

SMALLEST = 4.8973451890853435e-08
"""Stands for the last ᾱ of a ZTSNR schedule, which is 0: programs that divide by it agree on this one."""
FLOW_MARKER = "rectified_flow"
_KEPT = (
    "author", "date", "description", "encoder_layer", "implementation_version", "license", "merged_from",
    "preprocessor", "tags", "thumbnail", "timestep_range", "trigger_phrase", "unet_dtype", "usage_hint", "vae_dtype",
)  # fmt: skip
"""ModelSpec's entries for people: a file's own words are carried over."""


def modelspec_metadata(parts: CheckpointParts) -> dict[str, str]:
    """Metadata of the file's header, without our own key; every value is text."""
    schedule, record = parts.record.schedule, parts.record
    pixels = native_pixels(parts)
    plain = is_sdxl(parts)
    found = {
        "format": "pt",
        HASH: "",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(parts) if plain else "terminus-reduced-sdxl",
        "modelspec.implementation": "sgm",
        "modelspec.title": parts.title,
        "modelspec.resolution": f"{pixels}x{pixels}",
        "modelspec.prediction_type": prediction_type(schedule),
        "modelspec.predict_key": predict_key(schedule),
        "ss_v2": "False",
    }
    if schedule.prediction == "flow":  # which kohya's keys have no word for
        found["modelspec.usage_hint"] = f"rectified flow, shift {schedule.shift:g} (ModelSamplingSD3 in ComfyUI)"
    else:
        found["ss_zero_terminal_snr"] = str(schedule.zero_terminal)
    if plain:
        found["ss_base_model_version"] = "sdxl_base_v1-0"
    if schedule.zero_terminal and schedule.prediction != "flow":
        found["modelspec.usage_hint"] = "trailing timesteps (sgm_uniform), guidance rescale 0.7"
    # People's words are kept; what the record knows comes after them and counts.
    for key in (f"modelspec.{name}" for name in _KEPT):
        if key in parts.metadata:
            found[key] = parts.metadata[key]
    if record.merges:
        found["modelspec.merged_from"] = record.merges[-1].names
    if record.licence is not None:
        found["modelspec.license"] = record.licence
    if record.weighting.get("kind") == "min_snr" and "gamma" in record.weighting:
        found["ss_min_snr_gamma"] = str(record.weighting["gamma"])
    return found


def prediction_type(schedule: Schedule) -> str:
    """The value of `modelspec.prediction_type`: "epsilon", "v", "v-zsnr" or "flow".

    The standard knows `v` alone; the one program that reads this key takes `v` for "no zero terminal SNR". `flow` is a
    proposal of ours (docs/flow.md).
    """
    if schedule.prediction != "velocity":
        return schedule.prediction
    return "v-zsnr" if schedule.zero_terminal else "v"


def predict_key(schedule: Schedule) -> str:
    """The value of `modelspec.predict_key`, ComfyUI's name for the same: "epsilon", "v" or "flow"."""
    return "v" if schedule.prediction == "velocity" else schedule.prediction


def native_pixels(parts: CheckpointParts) -> int:
    """The side of the square image that the model was trained on."""
    levels = cast(list[object], parts.configs["vae"].get("block_out_channels", []))
    return parts.record.side(parts.configs["unet"].get("sample_size"), 2 ** (len(levels) - 1))


def marker_tensors(schedule: Schedule) -> dict[str, Tensor]:
    """Tensors beside the networks: two whose names are the message, and the schedule itself."""
    found: dict[str, Tensor] = {}
    # A proposal (docs/flow.md): its name says what the model is, its number is the shift. It has no table of alphas,
    # by which other programs would take it for diffusion.
    if schedule.prediction == "flow":
        return {FLOW_MARKER: torch.tensor([schedule.shift])}
    # Others write them empty. Converting to GGUF, stable-diffusion.cpp divides by the first dimension, and dies of a 0.
    if schedule.prediction == "velocity":
        found["v_pred"] = torch.ones(1)
    if schedule.zero_terminal:
        found["ztsnr"] = torch.ones(1)
    if schedule.timesteps == 1000:  # the only length that its reader takes
        found["alphas_cumprod"] = alphas_cumprod(schedule)
    return found


def alphas_cumprod(schedule: Schedule) -> Float32[Tensor, " timesteps"]:
    """ᾱ of each timestep, computed in float64, never 0: programs that read it take its inverse."""
    table = noise_schedule(schedule).alphas_cumprod
    if schedule.zero_terminal:
        table = torch.cat([table[:-1], table.new_tensor([SMALLEST])])
    return table.to(torch.float32)


def is_sdxl(parts: CheckpointParts) -> bool:
    """Whether programs that know SDXL can load the networks: its shapes, any number of input channels."""
    unet, vae = parts.configs["unet"], parts.configs["vae"]
    return (
        unet.get("block_out_channels") == list(SDXL.unet.channels)
        and unet.get("transformer_layers_per_block") == list(SDXL.unet.transformer_layers)
        and unet.get("cross_attention_dim") == SDXL.context_width
        and unet.get("projection_class_embeddings_input_dim") == SDXL.text_time_width
        and vae.get("block_out_channels") == list(SDXL.vae.channels)
    )


def _architecture(parts: CheckpointParts) -> str:
    inpainting = "-inpainting" if parts.configs["unet"].get("in_channels") == 9 else ""
    return f"stable-diffusion-xl-v1-base{inpainting}"


def side_car(parts: CheckpointParts) -> str:
    """`<name>.yaml` for the A1111 family: SDXL as its `sgm` library builds it, with velocity scaling and weighting.

    Its 9-channel test comes before that for the marker tensors, so inpainting models are epsilon without this file.
    """
    return _SIDE_CAR.format(in_channels=int(parts.configs["unet"]["in_channels"]))


def needs_side_car(parts: CheckpointParts) -> bool:
    """Whether the model predicts velocity in SDXL's shapes; for others there is no program that would read it."""
    return is_sdxl(parts) and parts.record.schedule.prediction == "velocity"


_SIZES = """\
        - is_trainable: false
          input_key: {key}
          target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
          params:
            outdim: 256
"""
_SIDE_CAR = (
    """\
# SDXL with velocity prediction. Keep this file beside the checkpoint, under the same name.
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: true

    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.VWeighting
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization

    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: 2816
        num_classes: sequential
        use_checkpoint: false
        in_channels: {in_channels}
        out_channels: 4
        model_channels: 320
        attention_resolutions: [4, 2]
        num_res_blocks: 2
        channel_mult: [1, 2, 4]
        num_head_channels: 64
        use_spatial_transformer: true
        use_linear_in_transformer: true
        transformer_depth: [1, 2, 10]
        context_dim: 2048
        spatial_transformer_attn_type: softmax-xformers
        legacy: false

    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
        - is_trainable: false
          input_key: txt
          target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
          params:
            layer: hidden
            layer_idx: 11
        - is_trainable: false
          input_key: txt
          target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
          params:
            arch: ViT-bigG-14
            version: laion2b_s39b_b160k
            freeze: true
            layer: penultimate
            always_return_pooled: true
            legacy: false
"""
    + "".join(
        _SIZES.format(key=key) for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    )
    + """
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          attn_type: vanilla-xformers
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""
)
