"""`terminus caption`: asks about every image that has no answer yet, keeps the answers, hands them to training.

A kill costs the answers since the last commit; the same command asks only about what is not recorded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from rich.console import Console

from terminus.data.captioning import sheet
from terminus.data.captioning.answer import Answer, caption_of
from terminus.data.captioning.merge import merge_captions
from terminus.data.captioning.question import Asking, Failure, Question, questions
from terminus.data.captioning.settings import Captioner, Endpoint
from terminus.data.captioning.stream import replies
from terminus.data.captioning.table import Answers, generated
from terminus.data.record import CaptionRow
from terminus.data.settings import DataConfig
from terminus.data.store import Store, View
from terminus.errors import UserError
from terminus.images import Dropped
from terminus.progress import Meter

COMMIT_ROWS = 256
COMMIT_SECONDS = 10.0
"""A commit comes at whichever is first."""
TAKEN = 64
"""Rows that are read from the table at a time: their bytes are in memory while they wait."""
FAILURES_IN_A_ROW = 16
"""Without any answer between them; then the server is at fault, not the images."""
EXAMPLES = 3
"""Images that a trial asks about."""


@dataclass
class Captioned:
    """The counts of one run: images = before + answered + failed + what a limit or a stop left."""

    images: int = 0
    """Of the recipe's transform in the store, and of the sources that are asked about."""
    before: int = 0
    """Answered by an earlier run."""
    answered: int = 0
    """Now, whether the answer is of use or not."""
    refused: Counter[str] = field(default_factory=Counter[str])
    """Answers of no use, of all runs, by reason."""
    failed: Counter[str] = field(default_factory=Counter[str])
    """Images without an answer, by reason; the next run asks about them again."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """That the asking took."""
    merged: int = 0
    """Images whose captions in the store are others than before."""
    sheet: str = ""
    """Place of the page that shows captions before and after."""


def write_captions(
    data: DataConfig,
    captioner: Captioner,
    console: Console | None = None,
    limit: int | None = None,
    trial: bool = False,
    device: str = "auto",
) -> Captioned:
    """Asks about at most `limit` images and writes the captions; a trial asks about a few and writes nothing.

    Raises UserError if there is nothing prepared, if nobody answers, or if only failures come back; what was answered
    until then is kept.
    """
    console = console or Console(stderr=True)
    store = Store(data.store)
    images = store.images.required()
    # The name, and whether anybody answers, before an image is read.
    _check_name(store, images, captioner.name)
    asking = _asking(captioner, data.seed, device)
    try:
        run = _Run(data, captioner, store, console)
        rows = run.waiting(images)
        if trial:
            run.try_out(images, rows, limit or EXAMPLES, asking)
            return run.counts
        # However it ends, what was answered is written.
        try:
            run.ask(images, rows[:limit], asking)
        except UserError:
            run.finish()  # what was answered can be trained on, although the rest must wait
            raise
        finally:
            run.commit()
    finally:
        asking.close()
    return run.finish()


class _Run:
    """One run's memory: what waits for the next commit, and the counts."""

    def __init__(self, data: DataConfig, captioner: Captioner, store: Store, console: Console) -> None:
        self.data, self.captioner, self.store, self.console = data, captioner, store, console
        self.answers = Answers(store)
        self.whole = data.crops > 1
        self.settings = captioner.settings(data.seed, self.whole)
        self.request = captioner.request(data.seed, self.whole)
        self.counts = Captioned()
        self.origins = generated(store, ()).origins
        self.pending: list[CaptionRow] = []
        self.committed = time.monotonic()
        self.failures: list[tuple[Question, Failure]] = []

    def waiting(self, images: View) -> list[int]:
        """Row numbers of the images of this transform without an answer, in row order."""
        # The images of this transform and these sources, and those of them without an answer.
        answered = self.answers.answered(self.request)
        table = images.scan(["key", "transform", "source"])
        columns = (table.column(name).to_pylist() for name in ("key", "transform", "source"))
        wanted = self.captioner.sources
        here = [
            (row, key)
            for row, (key, spec, source) in enumerate(zip(*columns, strict=True))
            if spec == self.data.transform.spec and (not wanted or source in wanted)
        ]
        rows = [row for row, key in here if key not in answered]
        self.counts.images, self.counts.before = len(here), len(here) - len(rows)
        self.counts.refused.update(reason for _, key in here if (reason := answered.get(key)))
        return rows

    def ask(self, images: View, rows: Sequence[int], asking: Asking) -> None:
        """Asks about these rows and records the answers as they come."""
        begun = time.monotonic()
        before = self.counts.before
        with (
            Meter(self.console, "caption", before + len(rows), before) as meter,
            closing(replies(asking, self._questions(images, rows))) as stream,
        ):
            for question, reply in stream:
                if isinstance(reply, Failure):
                    self._fail(question, reply, asking)
                else:
                    self._record(question, reply)
                    self.failures.clear()
                self.counts.seconds = time.monotonic() - begun
                meter.advance(1, self._status())

    def try_out(self, images: View, rows: Sequence[int], count: int, asking: Asking) -> None:
        """Prints a few questions with their answers, and what all of them will take; writes nothing."""
        begun = time.monotonic()
        with closing(replies(asking, self._questions(images, rows[:count]))) as stream:
            for question, reply in stream:
                self._print(f"\n{question.name}\n  asked:  {question.prompt}")
                if isinstance(reply, Failure):
                    self.counts.failed[reply.reason] += 1
                    self._print(f"  failed: {reply.reason} {reply.detail}")
                    continue
                self._count(reply)
                # Judged as in a real run, and not recorded.
                judged = caption_of(reply, self.captioner.max_tokens)
                if isinstance(judged, Dropped):
                    self.counts.refused[judged.reason] += 1
                    judged = f"[not used: {judged.reason}] {judged.detail}"
                self._print(f"  answer: {judged}")
        self.counts.seconds = time.monotonic() - begun
        self._estimate(len(rows), asking)

    def commit(self) -> None:
        """Writes what is pending."""
        self.answers.append(self.pending)
        self.pending = []
        self.committed = time.monotonic()

    def finish(self) -> Captioned:
        """Hands the captions to the tables that training reads, and writes the page."""
        # Few files, today's weights, and then the tables that training reads.
        self.commit()
        self.answers.compact()
        chosen = self.captioner
        self.answers.weigh(chosen.name, self.request, chosen.weight, chosen.own_weight)
        self.counts.merged = merge_captions(self.store)
        self.counts.sheet = sheet.write_sheet(self.store, self.data.transform.spec, dict(self.counts.failed))
        self._say()
        return self.counts

    def _questions(self, images: View, rows: Sequence[int]) -> Iterator[Question]:
        for start in range(0, len(rows), TAKEN):
            yield from questions(images, rows[start : start + TAKEN], self.captioner.prompt, self.origins, self.whole)

    def _record(self, question: Question, answer: Answer) -> None:
        judged = caption_of(answer, self.captioner.max_tokens)
        useless = judged if isinstance(judged, Dropped) else None
        self._count(answer)
        if useless:
            self.counts.refused[useless.reason] += 1
        self.pending.append(
            CaptionRow(
                key=f"{question.key}-{self.request}",
                image_key=question.key,
                source=question.source,
                source_id=question.source_id,
                origin=self.captioner.name,
                request=self.request,
                settings=self.settings,
                model=answer.model,
                caption=None if useless else cast(str, judged),
                reason=useless.reason if useless else None,
                detail=useless.detail if useless else "",
                weight=None if useless else self.captioner.weight,
                own_weight=None if useless else self.captioner.own_weight,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                created=datetime.now(UTC),
            )
        )
        if len(self.pending) >= COMMIT_ROWS or time.monotonic() - self.committed > COMMIT_SECONDS:
            self.commit()

    def _fail(self, question: Question, failure: Failure, asking: Asking) -> None:
        self.counts.failed[failure.reason] += 1
        self.failures.append((question, failure))
        # When a server goes down, all requests under way fail together.
        if len(self.failures) < FAILURES_IN_A_ROW + asking.at_once:
            return
        reasons = _listed(Counter(failure.reason for _, failure in self.failures))
        raise UserError(
            f"{len(self.failures)} images in a row got no answer ({reasons}); the last one, {question.name}: "
            f"{failure.reason} {failure.detail}".rstrip(),
            where="data.captioner",
            rule="A captioner that fails so often is not asked further; what was answered is kept",
            fix="Correct what the server complains of, or start it again; the same command continues.",
        )

    def _count(self, answer: Answer) -> None:
        self.counts.answered += 1
        self.counts.prompt_tokens += answer.prompt_tokens
        self.counts.completion_tokens += answer.completion_tokens

    def _status(self) -> str:
        counts = self.counts
        parts = [f"{_short(counts.prompt_tokens)} tokens in", f"{_short(counts.completion_tokens)} out"]
        if useless := sum(counts.refused.values()):
            parts.append(f"{useless} of no use")
        if failed := sum(counts.failed.values()):
            parts.append(f"{failed} failed")
        return ", ".join(parts)

    def _estimate(self, left: int, asking: Asking) -> None:
        """Cost and time of the whole. A server that answers a few at once sooner than many takes longer than this."""
        counts = self.counts
        if not counts.answered:
            return
        tokens = [_short(value * left // counts.answered) for value in (counts.prompt_tokens, counts.completion_tokens)]
        at_once = asking.at_once * asking.batch
        rounds = -(-left // at_once)
        self._print(
            f"\n{left} images to caption: about {tokens[0]} tokens in and {tokens[1]} out, and "
            f"{_duration(rounds * counts.seconds)} if {at_once} at once are answered as fast as these "
            f"{counts.answered}. Nothing was written."
        )

    def _say(self) -> None:
        counts = self.counts
        left = counts.images - counts.before - counts.answered - sum(counts.failed.values())
        parts = [f"{counts.answered} answered now, {counts.before} before"]
        parts += [f"{sum(some.values())} {what} ({_listed(some)})" for some, what in (
            (counts.refused, "of no use"), (counts.failed, "without an answer")) if some]  # fmt: skip
        parts += [f"{left} not asked yet"] if left else []
        self._print(
            f"{counts.images} images: {', '.join(parts)}; {_short(counts.prompt_tokens)} tokens in, "
            f"{_short(counts.completion_tokens)} out, {_duration(counts.seconds)}; captions of {counts.merged} images "
            f"changed. Before and after: {counts.sheet}"
        )
        if counts.failed:
            self._print("The same command asks again about those without an answer.")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _asking(captioner: Captioner, seed: int, device: str) -> Asking:
    if isinstance(captioner.model, Endpoint):
        from terminus.data.captioning.endpoint import EndpointAsking

        asking = EndpointAsking(captioner, captioner.model, seed)
        try:
            asking.check()
        # Closed also when it cannot be used: its thread would go on.
        except BaseException:
            asking.close()
            raise
        return asking
    from terminus.data.captioning.local import LocalAsking

    return LocalAsking(captioner, captioner.model, seed, device)


def _check_name(store: Store, images: View, name: str) -> None:
    """A captioner must not be called what a source calls its captions: it would replace them."""
    # A captioner that has answered before keeps its name.
    if name in generated(store, ()).origins:
        return
    origins = images.scan(["caption_origins"]).column("caption_origins")
    used = cast("list[str]", origins.combine_chunks().flatten().unique().to_pylist())
    if name in used:
        raise UserError(
            f"the sources' own captions are called {name!r}",
            where="data.captioner.name",
            rule="A captioner's name is the origin of its captions, and tells them from all others",
            fix="Choose another name, such as that of the model.",
        )


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counter.most_common())


def _short(number: int) -> str:
    """1234567 is "1.2 M"."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
