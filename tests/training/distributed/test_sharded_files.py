"""What a process holds of a tensor is written with its place, and read by any number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from terminus.training.distributed.sharded_files import HeldRows, TensorFiles, write_shards


def cut(whole: Tensor, processes: int) -> list[HeldRows]:
    """A tensor as FSDP2 cuts it: `torch.chunk` along the rows, and nothing for those that come too late."""
    if not whole.ndim:
        return [HeldRows(whole, 0, ()) for _ in range(processes)]
    pieces = list(whole.chunk(processes)) if len(whole) else []
    pieces += [whole[:0]] * (processes - len(pieces))
    starts = [sum(len(piece) for piece in pieces[:i]) for i in range(processes)]
    return [HeldRows(piece, start, tuple(whole.shape)) for piece, start in zip(pieces, starts, strict=True)]


alone = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TENSORS = {
    "even": torch.arange(24.0).view(8, 3),
    "uneven": torch.arange(35.0).view(7, 5),
    "few rows": torch.arange(8.0).view(2, 4).bfloat16(),
    "kernel": torch.arange(5 * 3 * 3 * 3.0).view(5, 3, 3, 3).to(memory_format=torch.channels_last),
    "vector": torch.arange(11.0),
    "one": torch.ones(1),
    "step": torch.tensor(7.0),
}


def folder(path: Path, processes: int, tensors: dict[str, Tensor] = TENSORS) -> list[Path]:
    """The files that so many processes write."""
    pieces = {name: cut(tensor, processes) for name, tensor in tensors.items()}
    files = [path / f"{rank + 1:05d}-of-{processes:05d}.safetensors" for rank in range(processes)]
    for rank, file in enumerate(files):
        write_shards(file, {name: some[rank] for name, some in pieces.items()})
    return files


@pytest.mark.parametrize("writers", [1, 2, 3, 4, 9])
def test_any_number_reads_what_any_number_wrote(tmp_path: Path, writers: int):
    with TensorFiles(folder(tmp_path, writers)) as stored:
        assert stored.names == sorted(TENSORS)
        for name, tensor in TENSORS.items():
            assert stored.shape(name) == tuple(tensor.shape)
            assert torch.equal(stored.read(name), tensor)
            for readers in (1, 2, 3, 5, 9):
                for piece in cut(tensor, readers):
                    found = stored.read(name, piece.rows)
                    assert found.dtype == tensor.dtype
                    assert torch.equal(found, piece.local), (name, readers, piece.start)
        assert {name: tensor.shape for name, tensor in stored.items()} == {n: t.shape for n, t in TENSORS.items()}


@alone
@pytest.mark.parametrize("writers", [1, 2, 4, 9])
def test_torchs_own_reader_understands_the_files(tmp_path: Path, writers: int):
    """Whole tensors, pieces of uneven size, processes without any, and scalars that every process has."""
    folder(tmp_path, writers)
    found = {name: torch.full_like(tensor, -1) for name, tensor in TENSORS.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@alone
def test_torchs_own_reader_understands_owned_tensors(tmp_path: Path):
    """`shard: optimizer`: every process writes whole tensors, each its own, and one has none."""
    for rank, names in enumerate((["even", "step"], ["uneven"], [])):
        write_shards(
            tmp_path / f"{rank}.safetensors",
            {name: HeldRows(TENSORS[name], 0, tuple(TENSORS[name].shape)) for name in names},
        )
    found = {name: torch.zeros_like(TENSORS[name]) for name in ("even", "uneven", "step")}
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(found[name], TENSORS[name]) for name in found)


def test_a_file_of_a_process_that_holds_nothing(tmp_path: Path):
    write_shards(tmp_path / "empty.safetensors", {})
    with TensorFiles([tmp_path / "empty.safetensors"]) as stored:
        assert stored.names == []
    with TensorFiles([]) as stored:
        assert stored.names == []


def test_what_belongs_to_the_same_rows():
    piece = HeldRows(torch.zeros(3, 5), 4, (7, 5))
    moment, step = piece.of(torch.ones(3, 5)), piece.of(torch.tensor(2.0))
    assert (moment.rows, moment.shape) == (slice(4, 7), (7, 5))
    assert (step.rows, step.shape) == (slice(0, 0), ())
    assert piece.size == 60


def test_a_copy_is_its_own():
    piece = HeldRows(torch.zeros(2, 2), 2, (4, 2))
    copy = piece.copied()
    piece.local.fill_(1)
    assert torch.equal(copy.local, torch.zeros(2, 2))
    assert copy.rows == piece.rows
