"""Asks a transformers image-text-to-text model in this process.

Only safetensors and only model classes that transformers itself ships: a model folder is data, and data runs nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError

from terminus import runtime
from terminus.data.captioning.answer import Answer
from terminus.data.captioning.question import Failure, Question
from terminus.data.captioning.settings import Captioner, Local
from terminus.errors import UserError

log = logging.getLogger("terminus")

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
"""What transformers raises on folders that are incomplete, malformed, or of a class that it does not know."""


class LocalAsking:
    """A vision-language model and its processor, in bf16 on a GPU and in float32 on a CPU."""

    at_once = 2  # while one batch is answered, the images of the next are decoded

    def __init__(self, captioner: Captioner, local: Local, seed: int, device: str = "auto") -> None:
        self.captioner, self.local, self.seed = captioner, local, seed
        self.batch = local.batch
        self.device = runtime.pick_device(device)
        self.processor, self.model = _loaded(local.model, self.device)
        self.revision = str(getattr(self.model.config, "_commit_hash", None) or local.model)
        tokenizer = self.processor.tokenizer
        # An image's own description must not contain what the model takes for an image or the end of the question.
        self._special = sorted(map(str, tokenizer.all_special_tokens), key=len, reverse=True)
        self._ends = _ends(self.model, tokenizer)
        self._images = ThreadPoolExecutor(max(1, os.cpu_count() or 1), thread_name_prefix="images")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="captions")

    def submit(self, questions: Sequence[Question]) -> Future[list[Answer | Failure]]:
        """The answers of one batch; the same batch gives the same answers on the same machine."""
        # Decoded while the batch before is answered; batches are answered one after the other.
        images = self._images.map(Question.image, questions)
        return self._thread.submit(self._ask, questions, images)

    def close(self) -> None:
        """Waits for the batch under way; what waits behind it is dropped."""
        self._thread.shutdown(cancel_futures=True)
        self._images.shutdown(cancel_futures=True)

    def _ask(self, questions: Sequence[Question], images: Iterator[Image.Image]) -> list[Answer | Failure]:
        inputs = self._inputs(list(images), [self._text(question.prompt) for question in questions])
        drawn = self.captioner.temperature > 0
        if drawn:
            # Drawn answers follow from the seed and the first image of the batch.
            torch.manual_seed(runtime.key(self.seed, int(questions[0].key[:15], 16), "caption"))
        try:
            with torch.inference_mode():
                produced = self.model.generate(
                    **inputs,
                    max_new_tokens=self.captioner.max_tokens,
                    do_sample=drawn,
                    **({"temperature": self.captioner.temperature} if drawn else {}),
                )
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(questions)} images at once do not fit into the memory of {self.device}",
                where="data.captioner.model.batch",
                fix="Halve it; what was answered is kept, and the same command continues.",
            ) from None
        asked = cast(torch.Tensor, inputs["attention_mask"]).sum(dim=1).tolist()
        # What was generated, without the question in front of it.
        told = produced[:, inputs["input_ids"].shape[1] :].cpu()
        return [self._answer(tokens, int(count)) for tokens, count in zip(told, asked, strict=True)]

    def _text(self, prompt: str) -> str:
        for token in self._special:
            prompt = prompt.replace(token, " ")
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        return str(self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))

    def _inputs(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Any]:
        inputs = self.processor(
            images=[[image] for image in images], text=list(texts), return_tensors="pt", padding=True
        )
        return dict(inputs.to(self.device, dtype=self.model.dtype))  # BatchFeature casts only what is not integers

    def _answer(self, tokens: torch.Tensor, asked: int) -> Answer:
        numbers = tokens.tolist()
        end = next((place for place, number in enumerate(numbers) if number in self._ends), None)
        return Answer(
            text=str(self.processor.tokenizer.decode(numbers[:end], skip_special_tokens=True)),
            cut_short=end is None and len(numbers) >= self.captioner.max_tokens,
            model=self.revision,
            prompt_tokens=asked,
            completion_tokens=len(numbers) if end is None else end + 1,
        )


def _loaded(model: str, device: torch.device) -> tuple[Any, Any]:
    """The processor, padding on the left as generation needs it, and the model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as their_logging

    their_logging.disable_progress_bar()
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        # Weights in safetensors alone, and no code that comes with a model.
        processor = cast(Any, AutoProcessor).from_pretrained(model, trust_remote_code=False)
        network, report = cast(Any, AutoModelForImageTextToText).from_pretrained(
            model, use_safetensors=True, trust_remote_code=False, dtype=precision, output_loading_info=True
        )
    except (*_BROKEN, SafetensorError) as error:
        raise _unusable(model, f"it cannot be loaded ({_first_line(error)})") from None
    # All weights (transformers only warns of missing ones), both kinds of input, and a template to ask by.
    if missing := sorted(report["missing_keys"]):
        raise _unusable(model, f"{len(missing)} of its weights are missing ({missing[0]}, ...)")
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise _unusable(model, "its processor does not take both an image and a text")
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        raise _unusable(model, "it has no chat template, so how it is asked is unknown")
    processor.tokenizer.padding_side = "left"
    log.info("captions by %s on %s in %s", model, device, str(precision).removeprefix("torch."))
    return processor, network.eval().to(device)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer."""
    named = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
    flat = [number for entry in named for number in (entry if isinstance(entry, list) else [entry])]
    return frozenset(number for number in flat if isinstance(number, int))


def _unusable(model: str, why: str) -> UserError:
    return UserError(
        why,
        where=f"data.captioner.model.model ({model})",
        rule="A local captioner is an image-text-to-text model of transformers in safetensors, without code of its own",
        fix="Name another folder or hub id, or serve the model and use kind: endpoint.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
