"""The models that a worker has in memory: the ones used last, as many as there is room for."""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch

from terminus import runtime
from terminus.model.adapters import read_adapter
from terminus.model.naming import find_local
from terminus.sampling.api import Terminus

_SPARE = 1.3
"""Memory that a model needs while it is loaded and used, in sizes of its files."""


class Shelf:
    """Loaded models by their names, the one used last at the end."""

    def __init__(self, device: str) -> None:
        self._where = runtime.pick_device(device)
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
            while self._models and _bytes_of(name) * _SPARE > _free(self._where):
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


def _bytes_of(name: str) -> int:
    path = find_local(name)
    if path is None:
        return 0
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
