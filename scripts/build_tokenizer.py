"""Trains nano's BPE vocabulary on the captions of the embedded dataset, in CLIP's layout.

CLIP's layout: 256 byte symbols, the same 256 with the end-of-word mark, the merges in order, then begin and end
of text; the end has the highest id. Usage: python scripts/build_tokenizer.py src/terminus/assets/nano
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from terminus.data import emoji
from terminus.model.architecture import NANO
from terminus.model.text_encoders import build_tokenizer, save_tokenizer

MERGES = 2000
EVERYDAY = "photo image painting image of a an the and with in on one two three small big bright dark night day"


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def corpus() -> list[str]:
    """Every caption the dataset can give, its keywords, and a few everyday words."""
    lines = [emoji.emoji_caption(drawing, colour) for drawing in emoji.drawings() for colour in emoji.BACKGROUNDS]
    return [*lines, *(" ".join(drawing.keywords) for drawing in emoji.drawings()), EVERYDAY]


def train(lines: list[str]) -> list[tuple[str, str]]:
    """Merges in the order in which they were learned."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=512 + MERGES,
        initial_alphabet=byte_symbols(),
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(lines, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def main(target: Path) -> None:
    symbols = byte_symbols()
    merges = train(corpus())
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += [token for token in dict.fromkeys(left + right for left, right in merges) if token not in set(tokens)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        save_tokenizer(build_tokenizer(vocab, merges, NANO.positions, pad), target / name)
    print(f"{len(vocab)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
