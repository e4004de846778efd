"""No tensor in any file that we write is of a form that other programs' readers stumble over.

An empty one ends stable-diffusion.cpp's conversion to GGUF (it divides by the innermost dimension), one of BOOL or I16
its loading, and more than five dimensions too (src/model_io/safetensors_io.cpp). A scalar, as kohya's alpha, is fine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from terminus.model.adapter_files import Algorithm
from terminus.model.components import load_components, save_components
from terminus.model.convert import convert
from terminus.model.header import read_header
from terminus.training.networks.adapter import AdapterConfig, attach_adapter

READABLE = {"F16", "BF16", "F32"}


def adapter(algorithm: Algorithm) -> Callable[[Path, Path], object]:
    def write(source: Path, target: Path) -> None:
        components = load_components(source)
        attached = attach_adapter(
            components, AdapterConfig(algorithm=algorithm, rank=1, targets="all"), text=True, seed=0
        )
        attached.write(components, target, "x")

    return write


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "a single file": lambda source, target: convert(source, target / "x-vpred.safetensors"),
    "a folder": lambda source, target: convert(convert(source, target / "x-vpred.safetensors").target, target / "x"),
    "a trained folder": lambda source, target: save_components(load_components(source), target / "x"),
    **{algorithm: adapter(algorithm) for algorithm in get_args(Algorithm)},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_tensor_can_be_read(tmp_path: Path, random_nano: Path, writer: str):
    WRITERS[writer](random_nano, tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert files
    for path in files:
        for name, info in read_header(path).tensors.items():
            assert info.dtype in READABLE, f"{path.name}: {name} is {info.dtype}"
            assert 0 not in info.shape, f"{path.name}: {name} is empty"
            assert len(info.shape) <= 5, f"{path.name}: {name} has {len(info.shape)} dimensions"
