"""Memory that was freed goes back to the system at once, so that a process holds what it needs and not what it needed.

Files and images are megabytes each, of all sizes, made and freed in many threads. glibc learns from them to keep ever
larger blocks in its pools, and Arrow's allocator keeps them too: after a gigabyte had been encoded, more than two
gigabytes that nobody used were held in the gaps.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa

MAPPED = 1 << 20
"""Bytes from which a block is a mapping of its own, which ends when it is freed."""
_M_MMAP_THRESHOLD = -3


def give_back() -> None:
    """From now on, in this process. Elsewhere than with glibc only Arrow's part changes."""
    pa.set_memory_pool(pa.system_memory_pool())
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, MAPPED)
