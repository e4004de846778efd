"""LoRA files and their relatives: method, rank, what they change, and what they were trained on, from the header."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from rich.console import Console

from terminus.inspection.findings import AdapterFinding
from terminus.inspection.tensors import about_tensors, clipped, hashes, other_keys, part
from terminus.model.detect import Evidence, metadata_evidence, weigh
from terminus.model.header import Header, read_numbers
from terminus.model.lineage import adapter_merges
from terminus.model.record import Prediction

_METHODS = {
    "LoRA": re.compile(r"[._]lora(?:_down|_up|_A|_B|\.down|\.up|_linear_layer\.)"),
    "DoRA": re.compile(r"\.dora_scale|lora_magnitude_vector"),
    "LoHa": re.compile(r"\.hada_w1_a"),
    "LoKr": re.compile(r"\.lokr_w[12]"),
    "OFT": re.compile(r"\.oft_(?:blocks|diag)|\.oft_R|\.boft_[RS]"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "IA³": re.compile(r"\.on_input$|\.ia3_l"),
    "full differences": re.compile(r"\.diff(?:_b)?$"),
    "norms": re.compile(r"\.[wb]_norm$"),
}
# The factor whose first side is the rank; of LoRA's the one that narrows, of the others one that has the rank first.
_RANK = re.compile(r"(?:[._]lora(?:_down|_A|\.down|_linear_layer\.down)[\w.]*weight|\.hada_w[12]_b|\.lokr_w[12]_b)$")
_FACTOR = re.compile(
    r"[._](?:lora(?:_down|_up|_mid|_A|_B|\.down|\.up|_linear_layer)|hada_|lokr_|b?oft_|dora_scale|diff|alpha)"
    r"|\.(?:[wb]_norm|[ab][12]\.weight|bm\.weight|on_input|ia3_l[\w.]*)$"
)
_NETWORKS = {
    "lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder",
    "lycoris_": "unet", "text_encoder_2.": "text_encoder_2", "text_encoder.": "text_encoder", "unet.": "unet",
    "base_model.model.": "unet", "diffusion_model.": "unet", "model.diffusion_model.": "unet",
    "text_encoders.clip_l.": "text_encoder", "text_encoders.clip_g.": "text_encoder_2",
}  # fmt: skip
_NAMINGS = {
    "lora_unet_": "kohya", "lora_te": "kohya", "lycoris_": "LyCORIS", "base_model.model.": "peft",
    "unet.": "diffusers", "text_encoder": "diffusers", "diffusion_model.": "LDM", "model.diffusion_model.": "LDM",
}  # fmt: skip
_TRAINING = (
    "ss_output_name", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_optimizer",
    "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_num_train_images", "ss_num_epochs", "ss_steps",
    "ss_resolution", "ss_min_snr_gamma", "ss_noise_offset", "ss_clip_skip", "ss_training_comment",
)  # fmt: skip
_MOST_READ = 64
"""Alphas that are read: each is one small read, and a file rarely has more than one value."""


def looks_like_adapter(header: Header) -> bool:
    """Whether the names are those of an adapter's factors."""
    return any(pattern.search(name) for name in header.tensors for pattern in _METHODS.values())


def adapter_finding(header: Header, console: Console) -> AdapterFinding:
    """The facts of one adapter file."""
    stored = header.metadata
    # What its metadata say of the model that it was trained on.
    evidence = tuple(metadata_evidence(stored))
    prediction, zero_terminal = _trained_on(evidence)
    return AdapterFinding(
        kind="adapter",
        path=str(header.path),
        method=_methods(header),
        naming=_naming(header),
        modules=_modules(header),
        ranks=_ranks(header),
        alphas=_alphas(header),
        prediction=prediction,
        zero_terminal=zero_terminal,
        evidence=evidence,
        base_model=_base_model(stored),
        merges=adapter_merges(stored),
        training=_training(stored),
        tags=_tags(stored.get("ss_tag_frequency", "")),
        tensors=part(header.tensors.values()),
        hashes=hashes([header], console),
        about=about_tensors(stored),
        other_metadata=other_keys(stored),
    )


def _trained_on(evidence: Sequence[Evidence]) -> tuple[Prediction | None, bool | None]:
    """Prediction and zero terminal SNR of the model it was trained on; None where the metadata do not say."""
    # The weighing has a default for what nobody says; here only what was said counts.
    decided = weigh(evidence).schedule
    says_prediction = any(one.prediction for one in evidence)
    says_terminal = any(one.zero_terminal is not None for one in evidence)
    return decided.prediction if says_prediction else None, decided.zero_terminal if says_terminal else None


def _methods(header: Header) -> tuple[str, ...]:
    return tuple(kind for kind, form in _METHODS.items() if any(form.search(name) for name in header.tensors))


def _ranks(header: Header) -> tuple[int, ...]:
    ranks = {info.shape[0] for name, info in header.tensors.items() if _RANK.search(name) and info.shape}
    return tuple(sorted(ranks))


def _base_model(stored: Mapping[str, str]) -> str | None:
    named = (stored.get("ss_base_model_version"), stored.get("ss_sd_model_name"))
    base = ", ".join(clipped(text, 120) for text in named if text)
    return base or stored.get("modelspec.architecture")


def _training(stored: Mapping[str, str]) -> dict[str, str]:
    """kohya's record of the training, without what it left empty."""
    found: dict[str, str] = {}
    for key in _TRAINING:
        if stored.get(key) not in (None, "", "None"):
            found[key.removeprefix("ss_")] = clipped(stored[key], 300)
    return found


def _naming(header: Header) -> str:
    names = Counter(
        next((naming for prefix, naming in _NAMINGS.items() if name.startswith(prefix)), "unknown")
        for name in header.tensors
    )
    return ", ".join(sorted(names))


def _modules(header: Header) -> dict[str, int]:
    # One module has several factors: their common beginning is counted once.
    modules = {name[: found.start()] for name in header.tensors if (found := _FACTOR.search(name))}
    owners = Counter(
        next((owner for prefix, owner in _NETWORKS.items() if module.startswith(prefix)), "unknown")
        for module in modules
    )
    return dict(sorted(owners.items()))


def _alphas(header: Header) -> tuple[float, ...]:
    # Only plain numbers; an alpha in int8 or of several values means nothing here.
    names = [name for name, info in header.tensors.items() if name.endswith(".alpha") and info.count == 1
             and info.dtype in ("F64", "F32", "F16", "BF16")]  # fmt: skip
    return tuple(sorted({float(read_numbers(header, name)[0]) for name in names[:_MOST_READ]}))


def _tags(stored: str) -> tuple[str, ...]:
    """kohya counts the tags of each folder of images."""
    try:
        folders = json.loads(stored) if stored else {}
    except (ValueError, RecursionError):
        return ()
    counts: Counter[str] = Counter()
    for tags in _entries(folders).values():
        for tag, count in _entries(tags).items():
            counts[tag] += count if isinstance(count, int) else 0
    return tuple(clipped(tag.strip(), 60) for tag, _ in counts.most_common(10))


def _entries(value: object) -> Mapping[str, object]:
    """The entries of a JSON object; none of anything else."""
    return cast(Mapping[str, object], value) if isinstance(value, dict) else {}
