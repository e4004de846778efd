"""Does an image show each thing that its prompt asks for? Yes-or-no questions, answered by a vision-language model.

A prompt is taken apart into atoms (an object, a count, a colour, a position, a relation), as in TIFA and GenEval 2; the
prompts are our own. The answer is a probability, taken from the log-probabilities of the first token and not from what
the model says, so that its doubt counts too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import resources
from io import BytesIO

import numpy as np
from PIL import Image
from pydantic import ValidationError

from terminus.data.captioning.answer import Answer
from terminus.data.captioning.endpoint import EndpointAsking
from terminus.data.captioning.question import Failure
from terminus.data.captioning.settings import MAX_SIDE, Captioner, Endpoint
from terminus.errors import UserError
from terminus.evaluation.captions import DrawnCaption, ImageSource
from terminus.evaluation.luminance import Mean, mean_of
from terminus.sampling.prompts import escape

ASK = "{} Answer with one word, yes or no."
TOKENS = 20
"""Likeliest first tokens that are asked for."""
DEFINITION = (
    "probability of yes against no by the judge's first token, for each atom of a prompt; `score` is the mean over "
    "prompts of the mean over a prompt's atoms, `strict` that of their geometric mean"
)


@dataclass(frozen=True)
class Atom:
    """One thing that a prompt asks for."""

    kind: str
    """"object", "count", "colour", "position" or "relation"."""
    question: str


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt with its atoms."""

    prompt: str
    atoms: tuple[Atom, ...]


@dataclass(frozen=True)
class JudgeEndpoint:
    """A server that speaks OpenAI's chat-completions protocol and gives log-probabilities."""

    url: str
    model: str
    key_env: str | None = None

    def asking(self) -> EndpointAsking:
        """Connections to it; UserError for what is no address, and where nobody answers."""
        try:
            # The same settings class as a captioner's, so that addresses and keys follow one rule.
            endpoint = Endpoint(kind="endpoint", url=self.url, model=self.model, key_env=self.key_env)
        except ValidationError as error:
            what = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
            raise UserError(f"This is no server to ask ({what})", where=f"--judge {self.url}") from None
        captioner = Captioner(name="judge", model=endpoint, max_tokens=8)
        asking = EndpointAsking(captioner, endpoint, 0, where="--judge", first_tokens=TOKENS)
        try:
            asking.check()
        except UserError:
            asking.close()
            raise
        return asking


@dataclass(frozen=True)
class Atoms:
    """How much of what prompts ask for is there."""

    judge: str
    """Model that answered."""
    prompts: int
    score: Mean
    strict: Mean
    kinds: dict[str, Mean]
    """By the kind of atom."""
    unanswered: int
    """Questions without a yes or no; they are in no number."""


@dataclass(frozen=True)
class _Seen:
    """One question about one image."""

    prompt: str
    image: ImageSource

    def jpeg(self) -> bytes:
        """At most `MAX_SIDE` pixels wide and high."""
        image = Image.fromarray(self.image)
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        file = BytesIO()
        image.save(file, "JPEG", quality=95)
        return file.getvalue()


def read_questions() -> tuple[AskedPrompt, ...]:
    """The 200 prompts that come with Terminus."""
    text = (resources.files("terminus") / "assets" / "questions.jsonl").read_text(encoding="utf-8")
    rows = (json.loads(line) for line in text.splitlines())
    return tuple(AskedPrompt(row["prompt"], tuple(Atom(**atom) for atom in row["atoms"])) for row in rows)


def question_captions(asked: Sequence[AskedPrompt], seed: int) -> list[DrawnCaption]:
    """One image for each prompt."""
    return [DrawnCaption(one.prompt, escape(one.prompt), seed + place) for place, one in enumerate(asked)]


def measure_atoms(
    asked: Sequence[AskedPrompt], images: Sequence[ImageSource], judge: JudgeEndpoint, advance: Callable[[int], None]
) -> Atoms:
    """Of image i for prompt i. UserError where the server gives no log-probabilities, or nobody answers at all."""
    # Every atom is a question of its own: in one question a model's answers lean on each other.
    places = [(row, atom) for row, one in enumerate(asked) for atom in one.atoms]
    asking = judge.asking()
    try:
        # Lazily, so that no more images are encoded than are under way.
        questions = (_Seen(ASK.format(atom.question), images[row]) for row, atom in places)
        answers = list(_answered(asking, questions, advance))
    finally:
        asking.close()
    values = [_probability(answer) for answer in answers]
    if not any(value is not None for value in values):
        raise UserError(_why(answers), where=f"--judge {judge.url}", rule="An atom's number is the probability of yes")
    prompts: dict[int, list[float]] = {}
    kinds: dict[str, list[float]] = {}
    for (row, atom), value in zip(places, values, strict=True):
        if value is not None:
            prompts.setdefault(row, []).append(value)
            kinds.setdefault(atom.kind, []).append(value)
    # A prompt counts once, however many atoms it has; the geometric mean falls to nothing with its worst atom.
    whole = [float(np.mean(found)) for found in prompts.values()]
    strict = [math.exp(float(np.mean(np.log(np.maximum(found, 1e-6))))) for found in prompts.values()]
    return Atoms(
        judge=judge.model,
        prompts=len(prompts),
        score=mean_of(np.array(whole)),
        strict=mean_of(np.array(strict)),
        kinds={kind: mean_of(np.array(found)) for kind, found in kinds.items()},
        unanswered=sum(value is None for value in values),
    )


def _answered(
    asking: EndpointAsking, questions: Iterator[_Seen], advance: Callable[[int], None]
) -> Iterator[Answer | Failure]:
    """Answers in the order of the questions, with as many under way as the server takes at once."""
    waiting: list[Future[list[Answer | Failure]]] = []
    for question in questions:
        # The oldest is waited for, so that answers keep the order of the questions.
        waiting.append(asking.submit([question]))
        if len(waiting) >= asking.at_once:
            yield waiting.pop(0).result()[0]
            advance(1)
    for one in waiting:
        yield one.result()[0]
        advance(1)


def _probability(answer: Answer | Failure) -> float | None:
    """Of yes, against no; None where neither is among the likeliest tokens."""
    if isinstance(answer, Failure):
        return None
    sums = {"yes": 0.0, "no": 0.0}
    for token, value in answer.first_token:
        # " Yes", "yes." and "▁yes" are the same answer in different tokenizers.
        word = token.strip().strip(".,!\"'▁Ġ").lower()
        if word in sums:
            sums[word] += math.exp(min(value, 0.0))
    total = sums["yes"] + sums["no"]
    return sums["yes"] / total if total > 0 else None


def _why(answers: Sequence[Answer | Failure]) -> str:
    failures = [one for one in answers if isinstance(one, Failure)]
    if len(failures) == len(answers):
        return f"No question was answered ({failures[0].reason}; {failures[0].detail})"
    given = [one for one in answers if isinstance(one, Answer)]
    if not any(one.first_token for one in given):
        return "The server gives no log-probabilities"
    return f"Neither yes nor no is among the likeliest answers (it said {given[0].text[:60]!r})"
