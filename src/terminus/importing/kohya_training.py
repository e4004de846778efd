"""The training half of kohya's settings: model, objective, optimizer, learning rate, adapter."""

from __future__ import annotations

from pathlib import Path

from terminus.config.source import Plain
from terminus.importing import meaning
from terminus.importing.kohya_keys import WHY
from terminus.importing.reading import Keys, Sourced, nearest
from terminus.importing.recipe import Draft

TRAINER = "sd-scripts"
_ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dora": "dora"}
_MODULES = ("networks.lora", "networks.lora_fa", "lycoris.kohya")


def read_kohya_training(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    """Lays down what the training file says; what it has no place for is listed."""
    # Before the model: `meaning.start` asks what is trained, and on which objective.
    _adapter(draft, keys)
    _objective(draft, keys)
    _noise(draft, keys)
    # The model. A path is relative to the file, an id of the hub is not.
    if model := keys.text("pretrained_model_name_or_path"):
        path = model.value
        if Path(path).suffix in (".safetensors", ".ckpt") or path.startswith((".", "/", "\\")):
            path = nearest(path, keys.file)
        meaning.start(draft, model, path)
        if path.endswith(".ckpt"):
            draft.notes.append(
                f"{model.origin}: a .ckpt file can run code when it is opened; give a .safetensors file."
            )
    else:
        draft.notes.append(
            "pretrained_model_name_or_path is not set; set model.start, which is the tiny nano by default."
        )
    # Length before the learning rate, whose warm-up may be a share of it.
    _length(draft, keys, size)
    _optimizer(draft, keys)
    _rate(draft, keys, size)
    _machine(draft, keys)
    meaning.no_average(draft, TRAINER)


def _objective(draft: Draft, keys: Keys) -> None:
    # Prediction, schedule and min-SNR.
    velocity = keys.flag("v_parameterization") or keys.unset("v_parameterization", False)
    terminal = keys.flag("zero_terminal_snr") or keys.unset("zero_terminal_snr", False)
    gamma = keys.number("min_snr_gamma")
    meaning.objective(draft, velocity, terminal, gamma)
    if gamma and terminal.value and velocity.value:
        draft.notes.append(
            f"{gamma.origin}: {TRAINER} takes the SNR before it rescales the schedule, so its weight at the last "
            "timestep was 0.0047 by accident; here it is exactly that of the schedule."
        )
    # Other weights of the loss, and its form.
    _debiased(draft, keys, velocity.value, gamma is not None)
    unset = keys.unset("loss_type", "l2")
    schedule = keys.text("huber_schedule") or keys.unset("huber_schedule", "snr")
    meaning.huber(
        draft, keys, keys.text("loss_type") or unset, schedule, keys.number("huber_c") or keys.unset("huber_c", 0.1)
    )


def _debiased(draft: Draft, keys: Keys, velocity: bool, weighted: bool) -> None:
    # A weight of its own here; there it multiplies with others.
    debiased = keys.is_on("debiased_estimation_loss")
    if debiased and weighted:
        draft.leave(
            keys, "debiased_estimation_loss", "it multiplies the weight of min_snr_gamma there; here one is chosen"
        )
    elif debiased and velocity:
        draft.leave(
            keys, "debiased_estimation_loss", "its weight is 1/(SNR + 1) for velocity there, which is no form here"
        )
    elif debiased:
        draft.set("objective.weighting.kind", "debiased", debiased.origin)


def _noise(draft: Draft, keys: Keys) -> None:
    # Noise that is added to the plain one.
    if offset := keys.number("noise_offset"):
        draft.set("objective.offset_noise", offset.value, offset.origin)
    if perturbed := keys.number("ip_noise_gamma"):
        draft.set("objective.input_perturbation", perturbed.value, perturbed.origin)
    # Timesteps: a half-open range there, an inclusive band here.
    low, high = keys.whole("min_timestep"), keys.whole("max_timestep")
    if low or high:
        first, end = low.value if low else 0, high.value if high else 1000
        origin = ", ".join(given.origin for given in (low, high) if given)
        if not 0 <= first < end <= 1000:
            draft.leave(keys, "min_timestep" if low else "max_timestep", f"{origin} is no range within 0 to 1000")
            return
        bands: list[Plain] = [{"low": first, "high": end - 1}]
        draft.set("objective.timestep_bands", bands, f"{origin} (max_timestep itself is excluded)")


def _length(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    # How many images an epoch has is not known before preparation.
    epochs = keys.whole("max_train_epochs")
    steps = keys.whole("max_train_steps")
    if epochs is not None:
        why = (
            "an epoch has as many images as are left after filtering; set training.images to that number times this one"
        )
        draft.leave(keys, "max_train_epochs", why)
        if steps is not None:
            draft.leave(keys, "max_train_steps", "max_train_epochs comes first")
    else:
        meaning.length_in_images(draft, "training.images", steps or keys.unset("max_train_steps", 1600), size)
    meaning.length_in_images(draft, "training.checkpoints.every_images", keys.whole("save_every_n_steps"), size)
    if seed := keys.whole("seed"):
        draft.set("training.seed", seed.value, seed.origin)


def _optimizer(draft: Draft, keys: Keys) -> None:
    # Which optimizer: the older flags override its name.
    kind = keys.text("optimizer_type") or keys.unset("optimizer_type", "AdamW")
    if eight := keys.is_on("use_8bit_adam"):
        kind = Sourced("AdamW8bit", eight.origin)
    if lion := keys.is_on("use_lion_optimizer"):
        kind = Sourced("Lion", lion.origin)
    # AdamW under any of its names; they differ in how the moments are stored.
    values, others = meaning.optimizer_values(keys.texts("optimizer_args"), "optimizer_args")
    moments = {
        "adamw": "fp32",
        "adamw8bit": "int8",
        "pagedadamw8bit": "int8",
        "pagedadamw": "fp32",
        "pagedadamw32bit": "fp32",
    }
    word = kind.value.lower()
    if word in moments:
        meaning.adamw(draft, kind, moments[word], values)
    elif word == "adafactor":
        draft.set("training.optimizer.kind", "adafactor", kind.origin)
        draft.notes.append(f"{kind.origin}: Adafactor here takes the recipe's learning rate, never relative steps.")
    else:
        draft.notes.append(
            f"{kind.origin}: there are adamw and adafactor; the recipe has adamw, and its rate may not fit."
        )
    if others:
        draft.notes.append(f"optimizer_args {', '.join(others)[:200]} could not be carried over: no such setting.")
    # Clipping, which cannot be turned off here.
    clip = keys.number("max_grad_norm")
    if clip and clip.value == 0:
        draft.leave(keys, "max_grad_norm", "0 clips nothing there; gradients are always clipped here, to norm 1")
    elif clip:
        draft.set("training.optimizer.clip_norm", clip.value, clip.origin)


def _rate(draft: Draft, keys: Keys, size: meaning.GlobalBatch) -> None:
    # The peak, of the UNet.
    top = keys.number("learning_rate") or keys.unset("learning_rate", 2e-6)
    top = keys.number("unet_lr") or top
    _text_encoder_rate(draft, keys, top.value)
    # The shape below it.
    shape = keys.text("lr_scheduler") or keys.unset("lr_scheduler", "constant")
    ratio = keys.number("lr_scheduler_min_lr_ratio")
    end = Sourced(ratio.value * top.value, f"{ratio.origin}, times {top.value:g}") if ratio else None
    # Warm-up in steps, or as a share of the run where it is below 1.
    warmup = keys.number("lr_warmup_steps") or Sourced(0.0, "")
    steps, of = warmup.value, draft.settings.get("training.images")
    if 0 < steps < 1:  # a share of the run
        total = of.value if of and isinstance(of.value, int) else 0
        images = int(steps * total)
        if not total:
            draft.leave(keys, "lr_warmup_steps", "a share of the run, whose length in images is not known here")
    else:
        images = int(steps) * size.images
    meaning.rate_schedule(draft, top, end, shape, Sourced(images, f"{warmup.origin}, as images"))


def _text_encoder_rate(draft: Draft, keys: Keys, top: float) -> None:
    """The rate of the text encoders relative to `top`, the UNet's."""
    if isinstance(keys.values.get("text_encoder_lr"), list):
        draft.leave(keys, "text_encoder_lr", "both text encoders have one rate, objective.text_encoder_rate")
        return
    text = keys.number("text_encoder_lr")
    if text is None or top <= 0:
        return
    if text.value > 0:
        draft.set("objective.text_encoder_rate", text.value / top, f"{text.origin}, relative to {top:g}")
    else:
        draft.set("objective.train_text_encoders", "none", text.origin)


def _adapter(draft: Draft, keys: Keys) -> None:
    module = keys.text("network_module")
    if module is None:
        _no_adapter(draft, keys)
        return
    # LyCORIS names the algorithm among the arguments of its module, and DoRA as a flag of LoRA.
    words = {word.partition("=")[0]: word.partition("=")[2] for word in keys.texts("network_args")}
    algorithm = words.pop("algo", "lora") if module.value.startswith("lycoris") else "lora"
    if words.pop("dora_wd", "").strip().lower() in ("true", "1") and algorithm in ("lora", "locon"):
        algorithm = "dora"
    if module.value not in _MODULES or algorithm not in _ALGORITHMS:
        draft.notes.append(f"{module.origin} {algorithm}: there are lora, dora, loha and lokr; the recipe has lora.")
    draft.set("model.adapter.algorithm", _ALGORITHMS.get(algorithm, "lora"), module.origin)
    # Size: that program's defaults, which are not those here.
    rank = keys.whole("network_dim") or keys.unset("network_dim", 4)
    alpha = keys.number("network_alpha") or keys.unset("network_alpha", 1.0)
    draft.set("model.adapter.rank", rank.value, rank.origin)
    draft.set("model.adapter.alpha", alpha.value, alpha.origin)
    # Which layers; there is no counterpart that matches exactly.
    if "conv_dim" in words:
        draft.set("model.adapter.targets", "all", "network_args: conv_dim")
    else:
        draft.set("model.adapter.targets", "attention_and_feed_forward", "what networks.lora changes, nearly")
    draft.notes.append(
        f"{module.origin}: what is changed there are the attention and feed-forward layers with the projections "
        "around them; the nearest here is attention_and_feed_forward, without those projections (with conv_dim: all)."
    )
    if words:
        draft.notes.append(f"network_args {', '.join(words)[:200]} could not be carried over: an adapter has one rank.")
    _adapted_text_encoders(draft, keys)


def _no_adapter(draft: Draft, keys: Keys) -> None:
    if text := keys.is_on("train_text_encoder"):
        draft.set("objective.train_text_encoders", "both", text.origin)
    for key in list(keys.values):
        if key.startswith("network_") and key not in WHY:
            draft.leave(keys, key, "there is no network_module, so all weights are trained")


def _adapted_text_encoders(draft: Draft, keys: Keys) -> None:
    if unet := keys.is_on("network_train_unet_only"):
        draft.set("objective.train_text_encoders", "none", unet.origin)
    else:
        draft.set(
            "objective.train_text_encoders",
            "both",
            "network_train_unet_only is not set: the text encoders are trained too",
        )
    if keys.is_on("network_train_text_encoder_only"):
        draft.leave(keys, "network_train_text_encoder_only", "text encoders are trained with the UNet, or not at all")


def _machine(draft: Draft, keys: Keys) -> None:
    # Formats of numbers, and what is saved of memory.
    precision = keys.text("mixed_precision")
    if precision and precision.value == "no":
        draft.set("training.precision", "fp32", precision.origin)
    elif precision and precision.value == "bf16":
        draft.set("training.precision", "bf16", precision.origin)
    elif precision:
        draft.leave(keys, "mixed_precision", "half precision here is bf16, which needs no loss scaling")
    if (full := keys.is_on("full_bf16")) and (not precision or precision.value != "no"):
        draft.set("training.weights", "bf16", f"{full.origin}; here with stochastic rounding")
    if saved := keys.is_on("gradient_checkpointing"):
        draft.set("training.activation_checkpointing", "full", saved.origin)
