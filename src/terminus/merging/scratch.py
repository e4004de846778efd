"""Tensors in a file instead of in memory: a merged model as large as SDXL is made and written in little memory.

The file lies beside the target, whose disk must hold the result anyway. It has no name from the moment it is mapped,
so nothing of it is left, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from terminus.errors import UserError

_ALIGNED = 64


def scratch_tensors(beside: Path, like: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
    """Zeros of these shapes and dtypes in one unnamed file; UserError where the disk has no room for them.

    The room is taken at once: a page that finds no disk later would end the process.
    """
    # Where each tensor begins, and how long all are together.
    starts: dict[str, int] = {}
    end = 0
    for name, (shape, dtype) in like.items():
        starts[name] = end
        size = shape.numel() * dtype.itemsize
        end += -(-size // _ALIGNED) * _ALIGNED
    if not end:
        return {}
    folder = next(parent for parent in beside.absolute().parents if parent.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".merging-") as file:
            os.posix_fallocate(file.fileno(), 0, end)
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=end)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The result cannot be made ({getattr(error, 'strerror', None) or error})", where=str(folder),
            rule=f"It needs {2 * end / 1e9:.1f} GB there, half of them while it works",
            fix="Make room, or name another disk",
        ) from error  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, (shape, dtype) in like.items():
        count = shape.numel() * dtype.itemsize
        whole = torch.empty(0, dtype=torch.uint8).set_(storage, starts[name], (count,), (1,))  # pyright: ignore[reportCallIssue, reportArgumentType]
        found[name] = whole.view(dtype).view(shape)
    return found
