"""A header is believed only after every check, and nothing else of the file is opened."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from terminus.errors import UserError
from terminus.model.header import read_header, read_numbers
from terminus.model.limits import HEADER_BYTES
from terminus.model.weights import SHIPPED

PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(folder: Path, header: object, data: bytes = b"", name: str = "model.safetensors") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / name
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_a_header_says_names_dtypes_shapes_and_metadata(tmp_path: Path):
    path = tmp_path / "some.safetensors"
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "v_pred": torch.tensor([]), "n": torch.tensor(3)}
    save_file(tensors, path, metadata={"format": "pt", "title": "Ä"})
    header = read_header(path)
    seen = {name: (info.dtype, info.shape, info.count) for name, info in header.tensors.items()}
    assert seen == {"a": ("BF16", (2, 3), 6), "v_pred": ("F32", (0,), 0), "n": ("I64", (), 1)}
    assert header.metadata == {"format": "pt", "title": "Ä"}


def test_the_shipped_unet_is_read_without_its_tensors():
    path = SHIPPED["nano"] / "unet" / "diffusion_pytorch_model.safetensors"
    header = read_header(path)
    ends = max(info.span[1] for info in header.tensors.values())
    assert header.start + ends == path.stat().st_size
    assert header.tensors["conv_in.weight"].shape[1] == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_small_table_is_read_by_range(tmp_path: Path, dtype: torch.dtype):
    table = torch.linspace(1, 1e-3, 10).to(dtype)
    save_file({"before": torch.ones(5), "table": table, "z": torch.zeros(3)}, tmp_path / "t.safetensors")
    numbers = read_numbers(read_header(tmp_path / "t.safetensors"), "table")
    assert np.array_equal(numbers, table.double().numpy())


def test_a_large_table_is_not_read(tmp_path: Path):
    save_file({"table": torch.zeros(5000), "whole": torch.zeros(3, dtype=torch.int64)}, tmp_path / "t.safetensors")
    header = read_header(tmp_path / "t.safetensors")
    for name in ("table", "whole"):
        with pytest.raises(UserError, match="at most 4096"):
            read_numbers(header, name)


class Marker:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pt", "evil.bin", "evil.pkl", "evil.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, name: str, protocol: int):
    marker = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps(Marker(marker), protocol=protocol))
    with pytest.raises(UserError, match="not a safetensors file") as caught:
        read_header(tmp_path / name)
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    pickle.loads((tmp_path / name).read_bytes())
    assert marker.exists(), "the trap works"


def test_a_torch_archive_is_refused_by_its_content(tmp_path: Path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="it is a zip archive"):
        read_header(tmp_path / "model.safetensors")
    with zipfile.ZipFile(tmp_path / "zip.safetensors", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(UserError, match="it is a zip archive"):
        read_header(tmp_path / "zip.safetensors")


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


BROKEN: dict[str, tuple[object, bytes, str]] = {
    "not JSON": (b"{hello}", b"", "JSON"),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", "UTF-8|utf-8"),
    "a list": (b"[]", b"", "header"),
    "truncated": ({"a": PAIR}, b"\0" * 7, "not fully covered|incomplete"),
    "trailing bytes": ({"a": PAIR}, b"\0" * 9, "not fully covered|incomplete"),
    "overlap": ({"a": PAIR, "b": PAIR | {"data_offsets": [4, 12]}}, b"\0" * 12, "offset"),
    "hole": ({"a": PAIR, "b": PAIR | {"data_offsets": [12, 20]}}, b"\0" * 20, "offset"),
    "shape is not bytes": ({"a": PAIR | {"shape": [3]}}, b"\0" * 8, "shape"),
    "negative side": ({"a": PAIR | {"shape": [-2]}}, b"\0" * 8, "-2"),
    "overflowing sides": ({"a": PAIR | {"shape": [2**62, 2**62]}}, b"\0" * 8, "overflow"),
    "unknown dtype": ({"a": PAIR | {"dtype": "F99"}}, b"\0" * 8, "F99"),
    "a huge dtype": ({"a": PAIR | {"dtype": "x" * 10**6}}, b"\0" * 8, "unknown variant"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "data_offsets"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "expected a string"),
    "NaN": (b'{"a": NaN}', b"", "JSON"),
    "nesting": (nested(100_000), b"", "recursion|expected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_layouts_are_one_clear_paragraph(tmp_path: Path, case: str):
    header, data, message = BROKEN[case]
    with pytest.raises(UserError, match=message) as caught:
        read_header(written(tmp_path, header, data))
    text = str(caught.value)
    assert "not a safetensors file" in text
    assert "\n" not in text
    assert len(text) < 1000


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"a": %b, "a": %b}' % ((json.dumps(PAIR).encode(),) * 2), "'a' stands 2 times"),
        (b'{"__metadata__": {"k": "1", "k": "2"}, "a": %b}' % json.dumps(PAIR).encode(), "'k' stands 2 times"),
        (b'{"__metadata__": {"k": "1"}, "__metadata__": {"k": "2"}, "a": %b}' % json.dumps(PAIR).encode(), "metadata"),
    ],
    ids=["tensor", "metadata", "both metadata"],
)
def test_a_name_that_stands_twice_is_refused(tmp_path: Path, raw: bytes, name: str):
    with pytest.raises(UserError, match=name):
        read_header(written(tmp_path, raw, b"\0" * 8))


@pytest.mark.parametrize("length", [HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_of_absurd_length_is_not_read(tmp_path: Path, length: int):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match=f"a header of {length} bytes"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x02\0\0\0\0\0\0\0{", b"<!DOCTYPE html><html></html>"])
def test_fragments_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a safetensors file"):
        read_header(tmp_path / "a.safetensors")


def test_a_length_that_looks_like_gzip_is_a_length(tmp_path: Path):
    raw = json.dumps({"a": PAIR}).encode()
    path = written(tmp_path, raw + b" " * (0x8B1F - len(raw)), b"\0" * 8)
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert set(read_header(path).tensors) == {"a"}


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path):
    with pytest.raises(UserError, match="not a file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(UserError, match="does not exist"):
        read_header(tmp_path / "nothing")


def test_names_are_data(tmp_path: Path):
    names = ["../../etc/passwd", "a\x1b[31m", "__class__", ""]
    tensors = {name: PAIR | {"data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    assert set(read_header(written(tmp_path, tensors, b"\0" * 32)).tensors) == set(names)
