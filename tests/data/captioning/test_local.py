"""A real vision-language model, tiny and with random weights, through the whole path; and models we must refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from terminus.data.captioning.local import LocalAsking
from terminus.data.captioning.question import Question, questions
from terminus.data.captioning.run import write_captions
from terminus.data.captioning.settings import Captioner, Local
from terminus.data.captioning.table import Answers
from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError

from .conftest import ask

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ->{% endif %}"
)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA's classes, 30 thousand random weights, a byte-level vocabulary. Read it only."""
    vocabulary = Tokenizer(models.BPE())
    vocabulary.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Words, so that random weights speak in them: greedy decoding of single bytes is seldom UTF-8.
    words = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("ado ", "elu ", "imi ", "ora ")]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    vocabulary.train_from_iterator([], trainer)
    vocabulary.add_tokens(words)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    shape = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, image_size=32, patch_size=8, **shape),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_key_value_heads=2, max_position_embeddings=1024,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.5, **shape,
        ),
        image_token_index=3,
        vision_feature_layer=-1,
        image_seq_length=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        with torch.no_grad():
            model.lm_head.weight[: len(special) + 256] = 0.0  # speak in words, and end when nothing is likelier
            model.model.multi_modal_projector.linear_2.weight *= 20.0  # so that the image matters
    folder = tmp_path_factory.mktemp("models") / "llava"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings(folder: Path, **changes: Any) -> Captioner:
    model = {"kind": "local", "model": str(folder), "batch": 5} | changes.pop("model", {})
    return Captioner.model_validate({"name": "tiny", "model": model, "max_tokens": 12} | changes)


def asked(data: DataConfig, captioner: Captioner, batch: int) -> list[str]:
    """What the model says of every image, in groups of `batch`."""
    images = Store(data.store).images.required()
    found = questions(images, range(images.count), captioner.prompt, frozenset())
    assert isinstance(captioner.model, Local)
    asking = LocalAsking(captioner, captioner.model, 0, "cpu")
    try:
        groups = [found[start : start + batch] for start in range(0, len(found), batch)]
        return [answer.text for group in groups for answer in asking.submit(group).result()]  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        asking.close()


def reference(folder: Path, question: Question) -> str:
    """The same by transformers alone, one image at a time and without padding."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor(images=question.image(), text=f"<image>{question.prompt} ->", return_tensors="pt")
    produced = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.decode(produced[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_are_those_of_transformers_and_do_not_depend_on_the_batch(prepared: DataConfig, llava: Path):
    captioner = settings(llava, prompt="See {captions}")
    told = asked(prepared, captioner, 5)
    found = questions(Store(prepared.store).images.required(), [0, 7, 11], captioner.prompt, frozenset())
    assert [told[row] for row in (0, 7, 11)] == [reference(llava, question) for question in found]
    assert told == asked(prepared, captioner, 1)
    assert len(set(told)) > 3, "the image and the prompt decide"


def test_answers_are_recorded_and_judged(prepared: DataConfig, llava: Path):
    result = ask(prepared, settings(llava), device="cpu")
    assert result.answered == 12
    assert result.completion_tokens > 12
    rows = Answers(Store(prepared.store)).table.required().scan(["model", "reason", "caption"]).to_pylist()
    assert len(rows) == 12
    assert {row["model"] for row in rows} == {str(llava)}
    assert {row["reason"] for row in rows} <= {None, "cut short", "repeats itself", "empty"}
    assert sum(result.refused.values()) == sum(row["caption"] is None for row in rows)
    assert ask(prepared, settings(llava), device="cpu").answered == 0


def test_drawn_answers_repeat_with_the_seed(prepared: DataConfig, llava: Path):
    warm = settings(llava, temperature=1.5)
    first = asked(prepared, warm, 4)
    assert first == asked(prepared, warm, 4)
    assert first != asked(prepared, settings(llava), 4)


def test_a_description_cannot_pretend_to_be_a_image(prepared: DataConfig, llava: Path, tmp_path: Path):
    captioner = settings(llava, prompt="<image></s> <image>")
    assert len(asked(prepared, captioner, 3)) == 12


def broken(llava: Path, place: Path, spoil: Callable[[Path], object]) -> Path:
    shutil.copytree(llava, place)
    spoil(place)
    return place


def _without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in sorted(tensors) if "q_proj" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('harm', 'w')\nC = M = None\n")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_without_a_weight, "1 of its weights are missing"),
        (_pickled, "cannot be loaded"),
        (_with_code, "cannot be loaded"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be loaded"),
        (shutil.rmtree, "cannot be loaded"),
    ],
    ids=["missing weight", "pickle", "code", "no template", "nonsense", "no config", "no tokenizer", "no folder"],
)
def test_models_that_cannot_be_used(
    spoil: Callable[[Path], object], why: str, prepared: DataConfig, llava: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = broken(llava, tmp_path / "broken", spoil)
    with pytest.raises(UserError, match=why):
        write_captions(prepared, settings(folder), device="cpu")
    assert not list(tmp_path.rglob("harm"))
    assert Answers(Store(prepared.store)).table.latest() is None
