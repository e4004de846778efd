"""Batches: `loader.batch(index)` is a pure function of the seed, the data's version and the index.

Threads only read ahead; what they deliver does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from terminus.data.batch import Batch, Rows
from terminus.data.order import BatchOrder, positions


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a run, `accumulation` to a step; of several processes each takes every `processes`-th."""

    rows: Rows
    order: BatchOrder
    accumulation: int
    threads: int
    rank: int = 0
    processes: int = 1
    """Divides `accumulation`."""

    def batch(self, index: int) -> Batch:
        """Micro-batch `index` of the run."""
        # Which rows, and their running numbers in the run.
        place = self.order[index]
        step, micro = divmod(index, self.accumulation)
        micro_batch = self.order.micro_batch
        numbers = positions(step, micro, self.accumulation * micro_batch, micro_batch)
        return self.rows.read(place.bucket, place.rows, numbers, place.epoch)

    def steps(self, start: int, stop: int) -> Generator[list[Batch]]:
        """This process's micro-batches of each step in [start, stop). Closing it ends its threads."""
        indices = range(start * self.accumulation + self.rank, stop * self.accumulation, self.processes)
        with closing(self._stream(indices)) as stream:
            for _ in range(start, stop):
                yield [next(stream) for _ in range(self.accumulation // self.processes)]

    def _stream(self, indices: range) -> Generator[Batch]:
        if self.threads == 0:
            yield from map(self.batch, indices)
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for index in indices:
                    ahead.append(pool.submit(self.batch, index))
                    # Two for each thread, so that none waits while a step computes.
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()
