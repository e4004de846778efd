"""Keeps a captioner busy, and passes its answers on in the order in which they come."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice

from terminus.data.captioning.answer import Answer
from terminus.data.captioning.question import Asking, Failure, Question

Reply = tuple[Question, Answer | Failure]


def replies(asking: Asking, questions: Iterable[Question]) -> Generator[Reply]:
    """Every question with what became of it. Closing it, or an error, leaves nothing under way.

    An error of the captioner is raised after the answers that came with it have been passed on.
    """
    running: dict[Future[list[Answer | Failure]], Sequence[Question]] = {}
    groups = _groups(questions, asking.batch)
    try:
        # As many under way as the captioner takes, and one more for each that is done.
        for group in groups:
            running[asking.submit(group)] = group
            if len(running) >= asking.at_once:
                yield from _finished(running)
        while running:
            yield from _finished(running)
    finally:
        for future in running:
            future.cancel()


def _finished(running: dict[Future[list[Answer | Failure]], Sequence[Question]]) -> Iterator[Reply]:
    """The groups that are ready now, at least one."""
    done = [(future, running.pop(future)) for future in wait(running, return_when=FIRST_COMPLETED).done]
    for future, group in done:
        if future.exception() is None:
            yield from zip(group, future.result(), strict=True)
    # Only then the error of one of them.
    for future, _ in done:
        future.result()


def _groups(questions: Iterable[Question], size: int) -> Iterator[Sequence[Question]]:
    iterator = iter(questions)
    while group := tuple(islice(iterator, size)):
        yield group
