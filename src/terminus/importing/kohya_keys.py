"""The keys of kohya's sd-scripts that a recipe has nothing for, each with the reason, and the names of the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CAPTION = "captions are used as they are written; nothing shuffles, cuts or joins their parts"
_PIXELS = "latents are made once from unaltered pixels; nothing mirrors or recolours them"
_BUCKETS = "bucket sides here follow from data.resolution: from half to twice of it"
_CACHE = "no meaning here: latents are always prepared and stored"
_SPEED = "no meaning here: how it is computed has no influence on the result, and is chosen by what the machine has"
_MASK = "masks come only with webdataset samples (KEY.mask.png); this source has none, so the loss counts everywhere"
_SAVE = (
    "training.checkpoints counts images and keeps whole checkpoints; the finished model is written in its own layouts"
)
_EPOCH = (
    "nothing here counts epochs: how many images one has is known after filtering; set the number of images by hand"
)
_SAMPLE = "previews are training.preview: prompts in the recipe, by the schedule that is trained"
_HUB = "nothing is uploaded by training"
_ADAPTER = "model.adapter has algorithm, rank, alpha and targets only"
_RATE = "the learning rate here is half a cosine between two bounds, or constant"
_LOG = "log.jsonl has every step; run.trackers names services"
_OTHER = "for other architectures than SDXL"
_METADATA = "the card is written from what the run records (run.name, run.licence, run.developer)"
_RESUME = "the same command on the same run.dir continues"
_NOISE = "objective.offset_noise is one number for all timesteps and images"

_GROUPS: tuple[tuple[str, str], ...] = (
    ("shuffle_caption keep_tokens keep_tokens_separator caption_separator secondary_separator enable_wildcard "
     "caption_prefix caption_suffix caption_tag_dropout_rate token_warmup_min token_warmup_step weighted_captions",
     _CAPTION),
    ("flip_aug color_aug", _PIXELS),
    ("face_crop_aug_range", "data.crop is center, random or native; nothing looks for faces"),
    ("class_tokens", "it stands in for missing captions there; here an image without a caption is dropped, with that "
     "reason in the report"),
    ("min_bucket_reso max_bucket_reso", _BUCKETS),
    ("bucket_no_upscale", "nothing here is ever enlarged: an image smaller than every bucket is dropped, where "
     "bucket_no_upscale makes a smaller bucket for it"),
    ("bucket_reso_steps", "there are no buckets without enable_bucket"),
    ("skip_image_resolution", "it is an area there; images smaller than their bucket are dropped here, and "
     "data.filters.min_edge is a side"),
    ("resize_interpolation", "images are scaled by LANCZOS, and only down"),
    ("cache_info cache_latents cache_latents_to_disk vae_batch_size skip_cache_check", _CACHE),
    ("cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size",
     "text is encoded during training, so that captions stay editable"),
    ("metadata_file in_json", "captions of that JSON file are not read; write them beside the images as .txt files"),
    ("masked_loss conditioning_data_dir alpha_mask", _MASK),
    ("caption_dropout_every_n_epochs", "objective.caption_dropout is a share of the samples"),
    ("custom_attributes validation_seed network_multiplier debug_dataset dataset_class dataset_repeats",
     "no counterpart"),
    ("validation_split", "data.validation_fraction is chosen by content and of all sources; set it by hand"),
    ("reg_data_dir prior_loss_weight", "regularization images count in the loss by prior_loss_weight, which nothing "
     "here does; add the folder to data.sources with a share in data.mix to mix them in"),
    ("save_every_n_epochs max_train_epochs sample_every_n_epochs validate_every_n_epochs", _EPOCH),
    ("save_n_epoch_ratio save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state "
     "save_state save_state_on_train_end save_state_to_huggingface save_model_as use_safetensors save_precision "
     "no_metadata mem_eff_save", _SAVE),
    ("sample_prompts sample_every_n_steps sample_at_first sample_sampler", _SAMPLE),
    ("xformers sdpa mem_eff_attn diffusers_xformers torch_compile dynamo_backend lowram highvram "
     "max_data_loader_n_workers persistent_data_loader_workers ddp_timeout ddp_gradient_as_bucket_view "
     "ddp_static_graph fused_backward_pass fused_optimizer_groups blocks_to_swap cpu_offload_checkpointing deepspeed "
     "zero_stage fp8_base fp8_base_unet no_half_vae opt_channels_last", _SPEED),
    ("offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path "
     "zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients", _SPEED),
    ("logging_dir log_with log_prefix log_tracker_name wandb_run_name log_tracker_config wandb_api_key log_config "
     "console_log_level console_log_file console_log_simple", _LOG),
    ("metadata_title metadata_author metadata_description metadata_license metadata_tags training_comment", _METADATA),
    ("huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
     "huggingface_repo_visibility async_upload", _HUB),
    ("resume resume_from_huggingface skip_until_initial_step initial_epoch initial_step", _RESUME),
    ("network_weights dim_from_weights base_weights base_weights_multiplier network_dropout scale_weight_norms",
     _ADAPTER),
    ("lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_type lr_scheduler_args lr_decay_steps "
     "lr_scheduler_timescale", _RATE),
    ("v2", "SD 2 is another architecture than SDXL"),
    ("max_token_length",
     "in training a caption is cut at 77 tokens, its beginning and end counted; see data.filters.captions"),
    ("clip_skip", "SDXL reads the layer before the last of both text encoders, always"),
    ("noise_offset_random_strength adaptive_noise_scale", _NOISE),
    ("multires_noise_iterations multires_noise_discount", "no counterpart: noise is white"),
    ("ip_noise_gamma_random_strength", "objective.input_perturbation is one number for all images"),
    ("scale_v_pred_loss_like_noise_pred", "it multiplies the loss by SNR/(SNR+1), which leaves the last timesteps of a "
     "zero-terminal-SNR model untrained; not carried over on purpose"),
    ("v_pred_like_loss", "no counterpart; objective.weighting has min_snr, soft_min_snr, constant and debiased"),
    ("huber_scale", "objective.loss.c is in units of the latents' spread and has no further scale"),
    ("vae", "the VAE is that of model.start; model.vae is read only where model.start is null"),
    ("tokenizer_cache_dir", "the tokenizers are those of model.start"),
    ("config_file output_config output_dir", "run.dir is a folder of its own"),
    ("full_fp16", "half precision here is bf16"),
    ("learning_rate_te1 learning_rate_te2 block_lr", "text encoders have one rate, objective.text_encoder_rate"),
    ("t5xxl clip_l clip_g guidance_scale timestep_sampling model_prediction_type discrete_flow_shift", _OTHER),
)  # fmt: skip

WHY: Mapping[str, str] = MappingProxyType({key: why for keys, why in _GROUPS for key in keys.split()})
"""Key to the reason why it is not carried over."""

_DATASET = (
    "resolution enable_bucket bucket_reso_steps random_crop num_repeats image_dir is_reg caption_extension",
    "caption_dropout_rate batch_size train_batch_size general datasets subsets train_data_dir",
)
DATASET_KEYS: frozenset[str] = frozenset({key for line in _DATASET for key in line.split()} | WHY.keys())
"""Every key that is known of a dataset file."""

_TRAINING = (
    "pretrained_model_name_or_path dataset_config output_name max_train_steps gradient_accumulation_steps",
    "learning_rate unet_lr text_encoder_lr lr_scheduler lr_warmup_steps lr_scheduler_min_lr_ratio optimizer_type",
    "optimizer_args use_8bit_adam use_lion_optimizer max_grad_norm mixed_precision full_bf16 gradient_checkpointing",
    "seed v_parameterization zero_terminal_snr min_snr_gamma debiased_estimation_loss noise_offset ip_noise_gamma",
    "loss_type huber_c huber_schedule min_timestep max_timestep network_module network_dim network_alpha",
    "network_args network_train_unet_only network_train_text_encoder_only train_text_encoder save_every_n_steps",
)
TRAINING_KEYS: frozenset[str] = frozenset({key for line in _TRAINING for key in line.split()} | WHY.keys())
"""Every key that is known of a training file, apart from those of datasets."""
