"""The models that a worker has in memory: the ones used last, as many as there is room for."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from terminus import runtime
from terminus.model.adapters import read_adapter
from terminus.model.header import read_header
from terminus.model.weights import at_home, resolve, weight_files
from terminus.sampling.api import Terminus

_SPARE = 1.3
"""Memory that a model needs while it is loaded and used, in sizes of its weights."""
_BYTES = {"cuda": 2}
"""Of a number in memory, by kind of device; elsewhere 4."""
_PARTS = (
    ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
    ("text_encoder_2", "model"), ("vision", "model"),
)  # fmt: skip
"""Folders of a model, and how their files begin."""


class Shelf:
    """Loaded models by their names, the one used last at the end."""

    def __init__(self, device: str, free: Callable[[torch.device], int] | None = None) -> None:
        """`free` tells the bytes that a device still has."""
        self._where = runtime.pick_device(device)
        self._free = free or _free_on
        self._models: OrderedDict[str, Terminus] = OrderedDict()

    @property
    def device(self) -> str:
        """Such as "cpu" or "cuda:0"."""
        return str(self._where)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory."""
        return tuple(self._models)

    def model(self, name: str) -> Terminus:
        """The model, loaded now if it is not there; others make room where memory is short."""
        if name not in self._models:
            # A model of the hub is fetched before it is counted.
            needed = weight_numbers(_place(name)) * _BYTES.get(self._where.type, 4) * _SPARE
            while self._models and needed > self._free(self._where):
                self._models.popitem(last=False)
                gc.collect()
                if self._where.type == "cuda":
                    torch.cuda.empty_cache()
            self._models[name] = Terminus.load(name, str(self._where))
        self._models.move_to_end(name)
        return self._models[name]

    def adapt(self, model: Terminus, wanted: Sequence[tuple[Path, float]]) -> None:
        """Puts just these adapters on, with these weights; those that are on already are not read again."""
        read = {path: weight for path, weight in wanted}
        on = {one.name: one for one in model.adapters.attached}
        names = {path.stem: path for path in read}
        for name in on:
            if name not in names:
                model.adapters.detach(name)
        for name, path in names.items():
            weight = read[path]
            if name not in on:
                model.adapters.attach(read_adapter(path, model.components), weight)
            elif on[name].unet != weight:
                model.adapters.weigh(name, weight)


def weight_numbers(path: Path) -> int:
    """Numbers in the files that are read of a model, a folder or one file; copies in other precisions count once."""
    files = [path] if path.is_file() else [one for part in _PARTS for one in weight_files(path / part[0], part[1])]
    return sum(info.count for file in files for info in read_header(file).tensors.values())


def _place(name: str) -> Path:
    path = at_home(name)
    return path if path.is_file() else resolve(name)


def _free_on(device: torch.device) -> int:
    """Bytes that a device still has."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else runtime.free_memory()
