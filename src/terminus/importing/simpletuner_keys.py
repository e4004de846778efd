"""The keys of SimpleTuner that a recipe has nothing for, each with the reason, and the names of the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CACHE = "no meaning here: latents are always prepared and stored, under what they are made of"
_TEXT_CACHE = "text is encoded during training, so that captions stay editable"
_SPEED = "no meaning here: how it is computed has no influence on the result, and is chosen by what the machine has"
_LOOK = "training.preview draws fixed prompts by the schedule that is trained, at the model's own size"
_HUB = "nothing is uploaded by training"
_CREDENTIAL = "credentials are never in a recipe: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
_CURRICULUM = "data.mix holds for the whole run; make one recipe for each phase, each starting from the model before"
_SCALED = "every image is scaled once, by LANCZOS, from its file to its bucket; nothing is scaled before that"
_DELETE = "nothing deletes files of a source; what is not used is in the report, with its reason"
_PART = "each dataset is prepared the same way"

_CONFIG: tuple[tuple[str, str], ...] = (
    ("output_dir", "run.dir is a folder of its own"),
    ("resume_from_checkpoint", "the same command on the same run.dir continues"),
    ("override_dataset_config preserve_data_backend_cache skip_file_discovery metadata_update_interval "
     "vae_batch_size vae_cache_ondemand vae_cache_disable vae_cache_scan_behaviour vae_cache_clear_each_epoch "
     "compress_disk_cache write_batch_size read_batch_size cache_dir cache_dir_vae "
     "aspect_bucket_worker_count max_workers image_processing_batch_size torch_num_threads "
     "dataloader_prefetch dataloader_prefetch_qlen enable_multiprocessing", _CACHE),
    ("cache_dir_text text_encoder_batch_size text_cache_ondemand text_cache_disable caption_filter_list", _TEXT_CACHE),
    ("delete_unwanted_images delete_problematic_images", _DELETE),
    ("aspect_bucket_rounding", "buckets here are sizes and not aspects, so there is nothing to round"),
    ("aspect_bucket_alignment", "there are no buckets in this recipe"),
    ("training_scheduler_timestep_spacing", "it has no effect on training there either"),
    ("inference_scheduler_timestep_spacing", "sampling is trailing: it begins at the last timestep"),
    ("use_soft_min_snr soft_min_snr_sigma_data",
     "it has no effect there since 2024; objective.weighting has soft_min_snr"),
    ("input_perturbation_steps", "objective.input_perturbation does not change over the run"),
    ("input_perturbation_probability", "objective.input_perturbation is for all samples"),
    ("refiner_training refiner_training_strength refiner_training_invert_schedule",
     "timesteps to train are objective.timestep_bands; set them by hand"),
    ("masked_loss_probability", "a mask counts in every step"),
    ("max_num_samples strict_epoch_limit ignore_final_epochs", "nothing here counts epochs"),
    ("lr_num_cycles lr_power lr_scale lr_scale_sqrt", "the learning rate here is half a cosine between two bounds"),
    ("gradient_precision base_model_precision base_model_default_dtype vae_dtype text_encoder_1_precision "
     "text_encoder_2_precision quantize_via quantize_activations keep_vae_loaded",
     "number formats are training.precision and training.weights; the VAE has its own rule"),
    ("attention_mechanism enable_xformers_memory_efficient_attention allow_tf32 disable_tf32 dynamo_backend "
     "dynamo_mode dynamo_fullgraph dynamo_dynamic unet_attention_slice vae_enable_tiling vae_enable_slicing "
     "fuse_optimizer optimizer_release_gradients optimizer_cpu_offload_method gradient_checkpointing_interval "
     "set_grads_to_none enable_group_offload ramtorch fused_qkv_projections num_processes num_machines "
     "deepspeed_config fsdp_enable accelerate_extra_args distributed_retries", _SPEED),
    ("ema_cpu_only ema_foreach_disable ema_validation ema_warmup_steps",
     "the average is float32, moves with the training, and is what is validated and previewed"),
    ("lora_dropout lora_format lora_init_type init_lora lora_initialisation_style peft_lora_mode lycoris_config",
     "model.adapter has algorithm, rank, alpha and targets only"),
    ("layer_freeze_strategy freeze_encoder", "all of the UNet is trained, or an adapter of it"),
    ("validation_prompt_library user_prompt_library validation_negative_prompt validation_resolution validation_seed "
     "validation_noise_scheduler num_validation_images validation_torch_compile validation_disable_unconditional "
     "validation_randomize validation_using_datasets validation_preview validation_multigpu disable_benchmark "
     "validation_disable validation_seed_source", _LOOK),
    ("validation_guidance_rescale", "guidance rescale is 0.7 by itself on zero-terminal-SNR models"),
    ("evaluation_type eval_dataset_id eval_timesteps eval_dataset_pooling",
     "held-out images are data.validation_fraction; "
     "`terminus evaluate` judges the finished model"),
    ("checkpointing_rolling_steps checkpoints_rolling_total_limit checkpointing_use_tempdir checkpoint_epoch_interval",
     "training.checkpoints has one interval, and milestones"),
    ("tracker_project_name tracker_run_name tracker_image_layout logging_dir webhook_config webhook_reporting_interval "
     "print_filenames print_sampler_statistics debug_aspect_buckets debug_dataset_loader", "log.jsonl has every step"),
    ("push_to_hub push_checkpoints_to_hub hub_model_id hub_token model_card_private model_card_safe_for_work "
     "model_card_note publishing_config", _HUB),
    ("pretrained_unet_model_name_or_path pretrained_unet_subfolder pretrained_vae_model_name_or_path "
     "pretrained_text_encoder_model_name_or_path revision variant model_flavour",
     "a model is one folder or file here, with all its parts: model.start"),
    ("data_backend_sampling", "sources are in proportion to their images unless data.mix says otherwise"),
    ("controlnet control controlnet_model_name_or_path", "ControlNets are used here, and not trained"),
    ("i_know_what_i_am_doing user_interface disable_accelerator offload_during_startup", "no counterpart"),
    ("instance_prompt prepend_instance_prompt only_instance_prompt", "captions are used as they are written"),
    ("metadata_backend", _CACHE),
    ("text_encoder_lr", "text encoders are not trained"),
)  # fmt: skip

WHY: Mapping[str, str] = MappingProxyType({key: why for keys, why in _CONFIG for key in keys.split()})
"""Key of config.json to the reason why it is not carried over."""

_CARRIED = (
    "model_family model_type pretrained_model_name_or_path data_backend_config seed prediction_type",
    "rescale_betas_zero_snr snr_gamma snr_weight loss_type huber_c huber_schedule offset_noise noise_offset",
    "noise_offset_probability input_perturbation timestep_bias_strategy timestep_bias_portion",
    "timestep_bias_multiplier timestep_bias_begin timestep_bias_end disable_segmented_timestep_sampling",
    "caption_dropout_probability max_train_steps num_train_epochs train_batch_size gradient_accumulation_steps",
    "learning_rate lr_scheduler lr_warmup_steps lr_end optimizer optimizer_config optimizer_beta1 optimizer_beta2",
    "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm grad_clip_method mixed_precision",
    "gradient_checkpointing use_ema ema_decay ema_device ema_update_interval train_text_encoder resolution",
    "resolution_type minimum_image_size maximum_image_size target_downsample_size maximum_aspect_ratio",
    "caption_strategy validation_prompt validation_step_interval validation_steps validation_guidance",
    "validation_num_inference_steps eval_steps_interval num_eval_images checkpoint_step_interval",
    "checkpointing_steps checkpoints_total_limit report_to lora_type lora_rank lora_alpha use_dora",
)
CONFIG_KEYS: frozenset[str] = frozenset({key for line in _CARRIED for key in line.split()} | WHY.keys())
"""Every key that is known of config.json."""

_BACKEND: tuple[tuple[str, str], ...] = (
    ("cache_dir cache_dir_vae vae_cache_clear_each_epoch vae_cache_ondemand vae_cache_disable vae_cache_scan_behaviour "
     "scan_for_errors skip_file_discovery preserve_data_backend_cache metadata_update_interval metadata_backend "
     "hash_filenames disable_vae_cache csv_cache_dir write_batch_size read_batch_size compress_cache webshart", _CACHE),
    ("text_embeds image_embeds text_encoder_batch_size caption_filter_list", _TEXT_CACHE),
    ("crop_aspect_buckets", "bucket sides follow from data.resolution"),
    ("maximum_image_size target_downsample_size", _SCALED),
    ("minimum_aspect_ratio", "data.filters.max_aspect limits both ways: longest side divided by the shortest"),
    ("max_upscale_threshold", "nothing is ever enlarged"),
    ("instance_prompt prepend_instance_prompt only_instance_prompt",
     "captions are used as they are written; images without one are dropped, with that reason in the report"),
    ("disable_multiline_split", "a text file is one caption here, its lines joined"),
    ("caption_shuffle", "nothing shuffles the parts of a caption"),
    ("parquet", "captions are not looked up by file name in a table; write them beside the images as .txt files, or "
     "give a table that holds the bytes or the addresses of the images to a source of kind laion"),
    ("start_epoch end_epoch start_step end_step ignore_epochs", _CURRICULUM),
    ("max_num_samples", "filters choose by what an image is; to take fewer, give a folder with fewer"),
    ("train_batch_size", "a recipe has one training.micro_batch"),
    ("slider_strength", "no counterpart"),
    ("conditioning_data conditioning conditioning_type conditioning_config source_dataset_id",
     "masks come only with webdataset samples (KEY.mask.png); other conditioning is not trained here"),
    ("delete_unwanted_images delete_problematic_images", _DELETE),
    ("timestep_sampling_offset", "no effect on SDXL"),
    ("aws_access_key_id aws_secret_access_key aws_session_token aws_endpoint_url aws_region_name "
     "aws_max_pool_connections", _CREDENTIAL),
    ("video audio s2v_datasets", "for other models than SDXL"),
    ("minimum_image_size", _PART), ("maximum_aspect_ratio", _PART), ("resolution_type", _PART),
)  # fmt: skip

BACKEND_WHY: Mapping[str, str] = MappingProxyType({key: why for keys, why in _BACKEND for key in keys.split()})
"""Key of a backend to the reason why it is not carried over."""

_CARRIED_OF_BACKENDS = (
    "id type dataset_type disabled disable instance_data_dir aws_data_prefix aws_bucket_name crop crop_style",
    "crop_aspect resolution caption_strategy probability repeats is_regularisation_data is_regularization_data",
    "csv_file csv_caption_column csv_url_column dataset_name split revision image_column caption_column huggingface",
    "source metadata default",
)
BACKEND_KEYS: frozenset[str] = frozenset(
    {key for line in _CARRIED_OF_BACKENDS for key in line.split()} | BACKEND_WHY.keys()
)
"""Every key that is known of a backend."""
