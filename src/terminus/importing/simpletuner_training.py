"""The configuration of SimpleTuner without its data: model, objective, optimizer, learning rate, adapter."""

from __future__ import annotations

from terminus.config.source import Plain
from terminus.importing import meaning
from terminus.importing.reading import Keys, Sourced, nearest
from terminus.importing.recipe import Draft

TRAINER = "SimpleTuner"
_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
_TIMESTEPS = 1000


def read_simpletuner_training(draft: Draft, keys: Keys) -> None:
    """Lays down what the configuration says; what it has no place for is listed."""
    # The batch first: steps are counted as images from here on.
    size = meaning.GlobalBatch(
        keys.whole("train_batch_size") or keys.unset("train_batch_size", 4),
        keys.whole("gradient_accumulation_steps") or keys.unset("gradient_accumulation_steps", 1),
    )
    meaning.batch(draft, size)
    # Before the model: `meaning.start` asks what is trained, and on which objective.
    _adapter(draft, keys)
    _objective(draft, keys)
    _noise(draft, keys)
    _timesteps(draft, keys)
    model = keys.text("pretrained_model_name_or_path") or keys.unset("pretrained_model_name_or_path", _BASE)
    local = model.value.startswith((".", "/", "\\")) or model.value.endswith(".safetensors")
    meaning.start(draft, model, nearest(model.value, keys.file) if local else model.value)
    _length(draft, keys, size)
    _optimizer(draft, keys)
    _rate(draft, keys, size)
    _average(draft, keys, size)
    _machine(draft, keys)
    _looking(draft, keys, size)


def _objective(draft: Draft, keys: Keys) -> None:
    # Prediction and schedule.
    given = keys.text("prediction_type")
    terminal = keys.flag("rescale_betas_zero_snr") or keys.unset("rescale_betas_zero_snr", False)
    if given is None:
        velocity = Sourced(False, "prediction_type is not set, which trains as epsilon there")
        draft.notes.append(
            "prediction_type is not set: SimpleTuner then trains SDXL as epsilon, whatever the checkpoint says. If the "
            "checkpoint predicts velocity, set objective.prediction: velocity; training refuses to begin until they "
            "agree."
        )
    elif given.value in ("epsilon", "v_prediction"):
        velocity = Sourced(given.value == "v_prediction", given.origin)
    else:
        velocity = Sourced(False, given.origin)
        reason = "the recipe has epsilon; a flow is objective.prediction: flow with zero_terminal_snr: true"
        draft.leave(keys, "prediction_type", reason)
    gamma = keys.number("snr_gamma")
    meaning.objective(draft, velocity, terminal, gamma if gamma and gamma.value > 0 else None)
    # Weight and form of the loss.
    if (weight := keys.number("snr_weight")) and weight.value != 1:
        draft.leave(keys, "snr_weight", "a factor on the whole loss does what the learning rate does")
    loss = keys.text("loss_type") or keys.unset("loss_type", "l2")
    schedule = keys.text("huber_schedule") or keys.unset("huber_schedule", "snr")
    meaning.huber(draft, keys, loss, schedule, keys.number("huber_c") or keys.unset("huber_c", 0.1))
    # Dropped captions.
    dropout = keys.number("caption_dropout_probability") or keys.unset("caption_dropout_probability", 0.1)
    draft.set("objective.caption_dropout", dropout.value, dropout.origin)
    if dropout.value:
        draft.notes.append(
            f"{dropout.origin}: a sample without its caption loses its sizes and crop there as well; here it keeps "
            "them, as "
            "the unconditional input of guidance does when images are drawn."
        )


def _noise(draft: Draft, keys: Keys) -> None:
    if keys.is_on("offset_noise"):
        # On for a part of the batches there, for all of them here; only the same is carried over.
        offset = keys.number("noise_offset") or keys.unset("noise_offset", 0.1)
        part = keys.number("noise_offset_probability") or keys.unset("noise_offset_probability", 0.25)
        if part.value == 1:
            draft.set("objective.offset_noise", offset.value, offset.origin)
        else:
            draft.leave(
                keys, "offset_noise", f"{part.origin}: it is for a part of the batches, and for all of them here"
            )
    else:
        for key in ("offset_noise", "noise_offset", "noise_offset_probability"):
            if key in keys.values and keys.raw(key):
                draft.leave(keys, key, "offset_noise is not on")
    if perturbed := keys.number("input_perturbation"):
        draft.set("objective.input_perturbation", perturbed.value, perturbed.origin)


def _timesteps(draft: Draft, keys: Keys) -> None:
    if uniform := keys.is_on("disable_segmented_timestep_sampling"):
        draft.set("objective.timesteps", "uniform", uniform.origin)
    # All keys are read, also where the strategy makes nothing of them, so that none counts as unknown.
    strategy = keys.text("timestep_bias_strategy")
    factor = keys.number("timestep_bias_multiplier") or keys.unset("timestep_bias_multiplier", 1.0)
    portion = keys.number("timestep_bias_portion") or keys.unset("timestep_bias_portion", 0.25)
    begin = keys.whole("timestep_bias_begin") or keys.unset("timestep_bias_begin", 0)
    end = keys.whole("timestep_bias_end") or keys.unset("timestep_bias_end", _TIMESTEPS)
    if strategy is None or strategy.value == "none":
        return
    # The range that is drawn more or less often, as [low, high).
    width = int(min(max(portion.value, 0.0), 1.0) * _TIMESTEPS)
    ranges = {
        "earlier": (0, width),
        "later": (_TIMESTEPS - width, _TIMESTEPS),
        "range": (max(0, begin.value), min(end.value, _TIMESTEPS)),
    }
    low, high = ranges.get(strategy.value, (0, 0))
    if low >= high or factor.value <= 0:
        draft.leave(keys, "timestep_bias_strategy", "there are earlier, later and range, with a factor above 0")
        return
    # As bands that cover all timesteps: before it, itself, behind it.
    parts = ((0, low, 1.0), (low, high, factor.value), (high, _TIMESTEPS, 1.0))
    bands: list[Plain] = [{"low": a, "high": b - 1, "weight": weight} for a, b, weight in parts if a < b]
    draft.set("objective.timestep_bands", bands, f"{strategy.origin}, {factor.origin}")


def _length(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    # The run, its checkpoints, and where its random numbers begin.
    steps, epochs = keys.whole("max_train_steps"), keys.whole("num_train_epochs")
    if steps and steps.value > 0:
        meaning.length_in_images(draft, "training.images", steps, size)
    if epochs and epochs.value > 0:
        why = (
            "an epoch has as many images as are left after filtering; set training.images to that number times this one"
        )
        draft.leave(keys, "num_train_epochs", why)
    for key in ("checkpoint_step_interval", "checkpointing_steps"):
        meaning.length_in_images(draft, "training.checkpoints.every_images", keys.whole(key), size)
    if kept := keys.whole("checkpoints_total_limit"):
        draft.set("training.checkpoints.keep", max(2, kept.value), f"{kept.origin}; at least 2")
    if (seed := keys.whole("seed")) and seed.value >= 0:
        draft.set("training.seed", seed.value, seed.origin)


def _optimizer(draft: Draft, keys: Keys) -> None:
    kind = keys.text("optimizer") or keys.unset("optimizer", "adamw_bf16")
    values, others = meaning.optimizer_values(
        [word for text in keys.texts("optimizer_config") for word in text.split(",") if word.strip()],
        "optimizer_config",
    )
    # A key of its own counts only where the list of settings says nothing.
    for key, name in (
        ("adam_beta1", "beta1"), ("adam_beta2", "beta2"), ("optimizer_beta1", "beta1"), ("optimizer_beta2", "beta2"),
        ("adam_weight_decay", "weight_decay"), ("adam_epsilon", "epsilon"),
    ):  # fmt: skip
        if given := keys.number(key):
            values.setdefault(name, given)
    _optimizer_kind(draft, kind, values)
    if others:
        draft.notes.append(f"optimizer_config {', '.join(others)[:200]} could not be carried over: no such setting.")
    _clipping(draft, keys)


def _optimizer_kind(draft: Draft, kind: Sourced[str], values: dict[str, Sourced[float]]) -> None:
    word = kind.value.lower()
    if word == "adamw_bf16":
        meaning.adamw(draft, kind, "bf16", values)
        draft.set("training.weights", "bf16", f"{kind.origin}: the weights are bf16 there, rounded stochastically")
    elif "adamw" in word:
        meaning.adamw(draft, kind, "int8" if "8bit" in word else "fp32", values)
    elif "adafactor" in word:
        draft.set("training.optimizer.kind", "adafactor", kind.origin)
    else:
        draft.notes.append(
            f"{kind.origin}: there are adamw and adafactor; the recipe has adamw, and its rate may not fit."
        )


def _clipping(draft: Draft, keys: Keys) -> None:
    # By value is the default there, and nothing here does it.
    method = keys.text("grad_clip_method") or keys.unset("grad_clip_method", "value")
    if method.value == "norm":
        clip = keys.number("max_grad_norm") or keys.unset("max_grad_norm", 2.0)
        draft.set("training.optimizer.clip_norm", clip.value, clip.origin)
    elif "max_grad_norm" in keys.values or "grad_clip_method" in keys.values:
        key = "max_grad_norm" if "max_grad_norm" in keys.values else "grad_clip_method"
        draft.leave(
            keys, key, f"{method.origin}: each gradient is clipped by its value there; here by the norm of all, 1"
        )


def _rate(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    # Warm-up in images.
    top = keys.number("learning_rate") or keys.unset("learning_rate", 4e-7)
    shape = keys.text("lr_scheduler") or keys.unset("lr_scheduler", "constant_with_warmup")
    steps = keys.whole("lr_warmup_steps") or Sourced(0, "")
    warmup = Sourced(steps.value * size.images, f"{steps.origin}, times {size.images} images")
    # A cosine there comes back; the number of warm-up steps is its period.
    if shape.value in ("sine", "cosine") and steps.value:
        draft.set(
            "training.learning_rate.period_images", warmup.value, f"{steps.origin} is the period of {shape.value} there"
        )
        draft.notes.append(
            f"{shape.origin} swings back and forth with the period {steps.value} steps; here the rate falls once "
            "over the "
            "period and stays low. Set training.learning_rate.period_images to the length of the run to fall over "
            "all of it."
        )
        warmup = Sourced(0, "")
    # The rate, and that of the text encoders relative to it.
    end = keys.number("lr_end") or keys.unset("lr_end", 4e-7)
    meaning.rate_schedule(draft, top, end, shape, warmup)
    if text := keys.is_on("train_text_encoder"):
        draft.set("objective.train_text_encoders", "both", text.origin)
    if (text_encoder_rate := keys.number("text_encoder_lr")) and top.value > 0:
        draft.set(
            "objective.text_encoder_rate",
            text_encoder_rate.value / top.value,
            f"{text_encoder_rate.origin}, relative to {top.value:g}",
        )


def _average(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    on = keys.is_on("use_ema")
    decay = keys.number("ema_decay")
    every = keys.whole("ema_update_interval") or keys.unset("ema_update_interval", 1)
    device = keys.text("ema_device")
    if on is None:
        meaning.no_average(draft, f"{TRAINER} without use_ema")
        return
    meaning.average(draft, decay or keys.unset("ema_decay", 0.995), max(1, every.value), size.images)
    if device and device.value == "cpu":
        draft.set("training.ema.device", "cpu", device.origin)


def _adapter(draft: Draft, keys: Keys) -> None:
    model_type = keys.text("model_type")
    if model_type is None or model_type.value != "lora":
        for key in ("lora_type", "lora_rank", "lora_alpha", "use_dora", "lycoris_config"):
            if key in keys.values and keys.raw(key):
                draft.leave(keys, key, "model_type is not lora, so all weights are trained")
        return
    algorithm = "dora" if keys.is_on("use_dora") else "lora"
    draft.set("model.adapter.algorithm", algorithm, model_type.origin)
    rank = keys.whole("lora_rank") or keys.unset("lora_rank", 16)
    draft.set("model.adapter.rank", rank.value, rank.origin)
    if alpha := keys.number("lora_alpha"):
        draft.set("model.adapter.alpha", alpha.value, alpha.origin)
    kind = keys.text("lora_type")
    if kind and kind.value != "standard":
        draft.leave(
            keys, "lora_type", "what LyCORIS trains stands in another file, which is not read: set model.adapter by it"
        )


def _machine(draft: Draft, keys: Keys) -> None:
    precision = keys.text("mixed_precision")
    # Without half precision the weights are float32 as well, whatever the optimizer is called.
    if precision and precision.value in ("no", "fp32"):
        draft.set("training.precision", "fp32", precision.origin)
        if "training.weights" in draft.settings:
            del draft.settings["training.weights"]
    elif precision and precision.value == "bf16":
        draft.set("training.precision", "bf16", precision.origin)
    elif precision:
        draft.leave(keys, "mixed_precision", "half precision here is bf16")
    saved = keys.flag("gradient_checkpointing") or keys.unset("gradient_checkpointing", True)
    draft.set("training.activation_checkpointing", "full" if saved.value else "none", saved.origin)


def _looking(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    # Previews.
    if prompt := keys.text("validation_prompt"):
        draft.set("training.preview.prompts", [prompt.value], prompt.origin)
    for key in ("validation_step_interval", "validation_steps"):
        meaning.length_in_images(draft, "training.preview.every_images", keys.whole(key), size)
    if steps := keys.whole("validation_num_inference_steps"):
        draft.set("training.preview.steps", steps.value, steps.origin)
    if guidance := keys.number("validation_guidance"):
        draft.set("training.preview.guidance", guidance.value, guidance.origin)
    # Validation and services.
    meaning.length_in_images(draft, "training.validation.every_images", keys.whole("eval_steps_interval"), size)
    if held := keys.whole("num_eval_images"):
        draft.set("training.validation.images", held.value, held.origin)
    services = [word.strip() for text in keys.texts("report_to") for word in text.split(",")]
    if "wandb" in services:
        draft.set("run.trackers", ["wandb"], "report_to")
    if [word for word in services if word not in ("wandb", "none", "")]:
        draft.leave(keys, "report_to", "run.trackers has wandb; log.jsonl and TensorBoard's files have all without")
