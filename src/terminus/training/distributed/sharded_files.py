"""Which part of a tensor a process holds, how it is stored, and how another number of processes reads it.

A process holds whole tensors, or whole rows of them (FSDP2 cuts along the first dimension). Each writes what it holds
into a file of its own in safetensors, with the place of each piece in the header, as `torch.distributed.checkpoint`
does (`HuggingFaceStorageReader` reads these folders). Readers take the rows they need from whichever files have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

_PLACES = "DCP_SHARDING_INFO"
"""The header's key for where pieces begin: {"name": {"saved_offsets": [row, 0, ...]}}."""


@dataclass(frozen=True)
class HeldRows:
    """The part of a tensor that this process holds: all of it, or rows from `start` on."""

    local: Tensor
    start: int
    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    @property
    def rows(self) -> slice:
        """The rows of the whole that are here."""
        return slice(self.start, self.start + (len(self.local) if self.local.ndim else 0))

    def of(self, other: Tensor) -> HeldRows:
        """Another tensor that belongs to the same rows if it has as many (an average, a moment), else to none."""
        if other.shape == self.local.shape:
            return HeldRows(other, self.start, self.shape)
        return HeldRows(other, 0, tuple(other.shape))

    def copied(self) -> HeldRows:
        """The same on the CPU, on its own."""
        return HeldRows(self.local.detach().to("cpu", copy=True), self.start, self.shape)

    @property
    def size(self) -> int:
        """Size of the held part in bytes."""
        return self.local.numel() * self.local.element_size()


def held(tensor: Tensor) -> HeldRows:
    """The part of `tensor` that this process holds. The local tensor is no copy.

    Raises `ValueError` for a tensor that is cut along another dimension than the first.
    """
    if not isinstance(tensor, DTensor):
        return HeldRows(local(tensor), 0, tuple(tensor.shape))
    if any(not (place.is_replicate() or place.is_shard(0)) for place in tensor.placements):
        raise ValueError(f"cut along another dimension than the first: {tensor.placements}")
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return HeldRows(local(tensor), offset[0] if offset else 0, tuple(tensor.shape))


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds, in the tensor's own memory."""
    return cast(DTensor, tensor.detach()).to_local() if isinstance(tensor, DTensor) else tensor.detach()


def write_shards(path: Path, pieces: Mapping[str, HeldRows]) -> None:
    """One safetensors file of whole tensors and pieces; those without rows are left out."""
    kept = {name: piece for name, piece in pieces.items() if piece.local.numel() or not piece.shape}
    places = {name: {"saved_offsets": _offsets(piece)} for name, piece in kept.items()}
    # Where all tensors are whole the header stays empty, and the file is like any other in safetensors.
    whole = all(tuple(piece.local.shape) == piece.shape for piece in kept.values())
    header = None if whole else {_PLACES: json.dumps(places)}
    save_file({name: piece.local.detach().cpu().contiguous() for name, piece in kept.items()}, path, header)


def _offsets(piece: HeldRows) -> list[int]:
    """The offsets of the piece in the whole, along each dimension."""
    return [piece.start, *[0] * (len(piece.shape) - 1)] if piece.shape else []


class TensorFiles:
    """The tensors of some files, read piece by piece. Use as a context manager."""

    def __init__(self, files: list[Path]) -> None:
        self._paths, self._stack = files, ExitStack()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[int, int, Any]]]:
        """By name: first row, rows, and the slice of the file that reads them."""
        found: dict[str, list[tuple[int, int, Any]]] = {}
        for path in self._paths:
            file = cast(Any, self._stack.enter_context(safe_open(path, "pt")))
            places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
            names: list[str] = file.keys()
            for name in names:
                offsets = places.get(name, {}).get("saved_offsets") or [0]
                part = file.get_slice(name)
                shape = part.get_shape()
                # A scalar has no rows, and safetensors cannot cut it.
                whole = part if shape else file.get_tensor(name)
                found.setdefault(name, []).append((offsets[0], shape[0] if shape else 0, whole))
        return {name: sorted(pieces, key=lambda piece: piece[:2]) for name, pieces in found.items()}

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        # Pieces are sorted, so the last one ends where the tensor ends.
        start, rows, part = self._pieces[name][-1]
        return () if isinstance(part, Tensor) else (start + rows, *part.get_shape()[1:])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or these rows of it, on the CPU."""
        pieces = self._pieces[name]
        # A scalar was read when its file was opened.
        if isinstance(pieces[0][2], Tensor):
            return pieces[0][2]
        # From each piece the rows that are wanted of it.
        first, last = (rows.start, rows.stop) if rows else (0, self.shape(name)[0])
        found = [
            part[max(first, start) - start : min(last, start + count) - start]
            for start, count, part in pieces
            if start < last and first < start + count
        ]
        # No row at all: an empty tensor that still has the format and the other dimensions.
        if not found:
            return pieces[0][2][:0]
        return found[0] if len(found) == 1 else torch.cat(found)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor, whole."""
        return ((name, self.read(name)) for name in self.names)
