"""A GPU that is not there: tensors on it are computed on the CPU, but they know where they are.

A tensor that meets one of the other device is an error, as it is on a real GPU, whatever the numbers would have been.
And what would make the program wait for the GPU is counted, with the line of ours that asked for it.

Two modes of torch do it. One sees the calls that Python makes, and answers for `device`; the other sees the operations
that run, forward and backward. Where a tensor is, its storage says: so views, gradients and `.data` are where they must
be. What it cannot show: kernels that a GPU does not have, and the CUDA lists of autocast (the CPU's are used).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
STAGED = 64 * 1024
"""Bytes that are copied to a GPU from ordinary memory without waiting for it (CUDA's manual, "API synchronization")."""
_MOVES = {"copy_", "_to_copy"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "repeat_interleave"}
"""Operations whose result the CPU must see before it can go on."""


class _Places:
    """Which storages are on the GPU, and which are page-locked. A weak reference keeps an address from being reused."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._known

    def put(self, tensor: Tensor, here: bool) -> Tensor:
        storage = tensor.untyped_storage()
        if here:
            self._known[storage._cdata] = StorageWeakRef(storage)
        else:
            self._known.pop(storage._cdata, None)
        return tensor


class PretendGPU:
    """Within its context "cuda" is a device."""

    def __init__(self) -> None:
        self.gpu, self.locked = _Places(), _Places()
        self.waits: Counter[str] = Counter()
        """How often the program waited for the GPU, by the line of ours that did."""
        self._modes = (_Operations(self), _Calls(self))

    def where(self, tensor: Tensor) -> torch.device:
        return tensor.device if tensor.is_meta else GPU if tensor in self.gpu else CPU

    def wait(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/src/terminus/" in frame.filename]
        place = f"{ours[-1].filename.rpartition('/src/terminus/')[2]} {ours[-1].name}" if ours else "elsewhere"
        self.waits[f"{place}: {what}"] += 1

    @contextmanager
    def there(self) -> Generator[PretendGPU]:
        with self._modes[0], self._modes[1]:
            yield self


def _mixed(what: object, tensors: Sequence[tuple[torch.device, Tensor]]) -> RuntimeError:
    found = ", ".join(f"{place.type} {list(tensor.shape)}" for place, tensor in tensors)
    return RuntimeError(f"Expected all tensors to be on the same device: {what} of {found}")


class _Operations(TorchDispatchMode):
    """What runs."""

    def __init__(self, pretend: PretendGPU) -> None:
        super().__init__()
        self.pretend = pretend

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self.pretend.gpu
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_meta]
        on_gpu = any(tensor in gpu for tensor in tensors)
        name = func.overloadpacket.__name__
        if on_gpu:
            self._check(name, tensors, args, kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in tensors}
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and not made.is_meta and made.untyped_storage()._cdata not in given:
                gpu.put(made, on_gpu)
        return result

    def _check(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        pretend = self.pretend
        if name in _MOVES:
            if name == "copy_":
                pretend_copy(pretend, tensors[0], tensors[1], bool((*args, False)[2]) or kwargs.get("non_blocking"))
            return
        if name in _INDEXING:
            indices = [one for one in args[1] if isinstance(one, Tensor)]
            if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
                pretend.wait(f"{name} by a mask")
            if args[0] in pretend.gpu:  # whose rows may be named by numbers on the CPU
                if any(one not in pretend.gpu for one in indices):
                    pretend.wait(f"{name} by numbers on the CPU")
                tensors = [one for one in tensors if not any(one is index for index in indices)]
        elif name in _WAITS:
            pretend.wait(name)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {name}")
        # A number (a tensor without dimensions) of the CPU may meet a GPU's tensors, but not in fused kernels.
        alone = [one for one in tensors if one not in pretend.gpu and (one.ndim or "fused" in name)]
        if alone:
            raise _mixed(name, [(pretend.where(one), one) for one in tensors])


def pretend_copy(pretend: PretendGPU, to: Tensor, source: Tensor, non_blocking: bool) -> None:
    """Counts a copy between two devices, if the program waits for it."""
    if (to in pretend.gpu) == (source in pretend.gpu):
        return
    host = source if to in pretend.gpu else to
    staged = to in pretend.gpu and host.nbytes <= STAGED
    if not (non_blocking and (staged or host in pretend.locked)):
        pretend.wait("a copy to the GPU" if to in pretend.gpu else "a copy from the GPU")


class _Calls(TorchFunctionMode):
    """What Python asks for."""

    def __init__(self, pretend: PretendGPU) -> None:
        super().__init__()
        self.pretend = pretend
        answers: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: pretend.where,
            Tensor.is_cuda.__get__: lambda tensor: tensor in pretend.gpu,
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor: self._moved(tensor, tensor, CPU, False),
            Tensor.cuda: lambda tensor: self._moved(tensor, tensor, GPU, False),
            Tensor.pin_memory: self._pinned,
            Tensor.is_pinned: lambda tensor: tensor in pretend.locked,
            Tensor.new_tensor: self._new_tensor,
        }
        self._answers = answers
        self._reads = (Tensor.numpy, Tensor.__array__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._answers:
            return self._answers[func](*args, **kwargs)
        if args and isinstance(args[0], Tensor) and args[0] in self.pretend.gpu:
            if func in self._reads:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func is Tensor.tolist:
                self.pretend.wait("tolist")
        locked = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        if device is None or func is torch._C._nn._parse_to or torch.device(device).type == "meta":
            made = func(*args, **kwargs)
        else:
            made = self._made(func, args, kwargs, torch.device(device))
        return self.pretend.locked.put(made, True) if locked else made

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
        """A new tensor, on the device that was named."""
        there = device.type == "cuda"
        generator = kwargs.get("generator")
        if there and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {func}")
        made = func(*args, **kwargs | {"device": CPU})
        if not isinstance(made, Tensor):
            return made
        if func in (torch.tensor, torch.as_tensor) and there:
            self.pretend.wait("a tensor of Python's numbers")
            made = made.clone() if made is args[0] else made
        return self.pretend.gpu.put(made, there)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (self.pretend.where(args[0]), args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        named = {"memory_format": layout} if layout is not None else {}
        if tensor.is_meta or (device is not None and device.type == "meta"):
            return tensor.to(device=device, dtype=dtype, copy=copy, **named)
        made = tensor.to(dtype=dtype or tensor.dtype, copy=copy, **named)
        return made if device is None else self._moved(tensor, made, device, non_blocking)

    def _moved(self, tensor: Tensor, made: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        """`made` of `tensor`, on the device; a tensor of its own where it was on the other one."""
        there = device.type == "cuda"
        if (tensor in self.pretend.gpu) == there:
            return made
        made = made.clone() if made.untyped_storage()._cdata == tensor.untyped_storage()._cdata else made
        self.pretend.gpu.put(made, there)
        pretend_copy(self.pretend, made, tensor, non_blocking)
        return made

    def _pinned(self, tensor: Tensor) -> Tensor:
        if tensor in self.pretend.gpu:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return self.pretend.locked.put(tensor.clone(), True)

    def _new_tensor(self, tensor: Tensor, data: Any, **kwargs: Any) -> Tensor:
        return self._made(torch.tensor, (data,), {"dtype": tensor.dtype} | kwargs, self.pretend.where(tensor))


@pytest.fixture(scope="module")
def pretend() -> Generator[PretendGPU]:
    """One for all tests of a file, with what else is asked of CUDA, and autocast of the CPU in place of the GPU's."""
    with pytest.MonkeyPatch.context() as patch:
        yield _installed(patch)


def _installed(monkeypatch: pytest.MonkeyPatch) -> PretendGPU:
    begin = torch.autocast.__init__

    def on_cpu(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    monkeypatch.setattr(torch.autocast, "__init__", on_cpu)
    event = SimpleNamespace(synchronize=lambda: None)
    stand_ins: dict[str, Any] = {
        "mem_get_info": (80 * 10**9, 80 * 10**9),
        "max_memory_allocated": 0,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "get_device_properties": SimpleNamespace(total_memory=80 * 10**9),
        "current_stream": SimpleNamespace(record_event=lambda: event),
    }
    # In C++, which the modes do not see, and which the total norm of gradients asks for the device.
    clipping = torch.nn.utils.clip_grad
    grouped = clipping._group_tensors_by_device_and_dtype

    def by_place(lists: Any) -> Any:
        return {
            (made.where(members[0][0]), kind): (members, rest) for (_, kind), (members, rest) in grouped(lists).items()
        }

    made = PretendGPU()
    monkeypatch.setattr(clipping, "_group_tensors_by_device_and_dtype", by_place)
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return made
