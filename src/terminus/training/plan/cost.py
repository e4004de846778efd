"""The cost of one step of a UNet, counted and not estimated: FLOPs, and the bytes that live between two passes.

The real network runs on the meta device, where tensors have shapes and no contents, so SDXL is counted in seconds and
in no memory. Autocast does not reach the meta device; its rules for a GPU and for a CPU are applied here.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from terminus.model.text import TextFeatures
from terminus.model.unet import UNet, predict
from terminus.model.weights import make_module
from terminus.runtime import Precision
from terminus.training.networks.adapter import AdapterConfig, inject
from terminus.training.networks.execution import BLOCKS, Checkpointing, recompute
from terminus.training.networks.frozen_weights import frozen_weights
from terminus.training.optim.weight_formats import WeightFormat, store_weights

Kind = Literal["cuda", "cpu"]
"""Whose kernels and whose autocast are counted."""
_SAMPLES = 8
"""Enough that what the backward pass holds of one layer's weights at a time does not pass for a sample's."""


@dataclass(frozen=True)
class Shape:
    """The case to count: a UNet, the shapes of its inputs, and how it runs."""

    config: str
    """The UNet's `config.json`."""
    height: int
    width: int
    """Of the latents."""
    tokens: int
    """Positions of the text."""
    precision: Precision = "bf16"
    """Number format of the arithmetic."""
    weights: WeightFormat = "fp32"
    """Number format in which the weights are stored."""
    kind: Kind = "cuda"
    adapter: str | None = None
    """`AdapterConfig` as JSON: what is trained in place of the UNet."""

    @property
    def deepest(self) -> int:
        """Positions of one sample at the lowest resolution."""
        factor = 2 ** (len(json.loads(self.config)["block_out_channels"]) - 1)
        return -(-self.height // factor) * -(-self.width // factor)


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of a forward and a backward pass, without the bytes of weights and their gradients."""

    parameters: int
    """Of the UNet, without an adapter's."""
    trained: int
    """Those with gradients: all of them, or an adapter's."""
    narrow: int
    """Frozen ones that are stored in the format of the arithmetic (`frozen`)."""
    forward: float
    """FLOPs per sample."""
    total: float
    """FLOPs per sample of both passes, whatever is computed a second time included."""
    kept: float
    """Bytes per sample that live between the passes."""
    peak: float
    """Bytes per sample at the highest point of both passes."""
    fixed: float
    """Bytes at that point that do not depend on the number of samples: copies of weights in the compute format, and
    what an adapter makes of weights alone."""


def config_of(unet: UNet) -> str:
    """The UNet's configuration, as `Shape` takes it."""
    return json.dumps(dict(unet.config), default=str, sort_keys=True)


@lru_cache(maxsize=256)
def count_cost(shape: Shape, mode: Checkpointing) -> Cost:
    """Runs several samples on the meta device, which takes as long as one, and divides what is not fixed."""
    run = run_once(shape, mode, _SAMPLES)
    kept, peak, fixed = run.kept - run.kept_fixed, run.peak - run.peak_fixed, run.peak_fixed
    if shape.adapter is not None:  # changes are computed from weights as large as these, and no mark tells them apart
        # Twice as many samples: what grows is theirs, the rest is fixed.
        more = run_once(shape, mode, 2 * _SAMPLES)
        kept, peak = more.kept - run.kept, more.peak - run.peak
        fixed = run.peak - peak
    return Cost(
        parameters=run.parameters,
        trained=run.trained,
        narrow=run.narrow,
        forward=run.forward / _SAMPLES,
        total=run.total / _SAMPLES,
        kept=kept / _SAMPLES,
        peak=peak / _SAMPLES,
        fixed=float(fixed),
    )


@dataclass(frozen=True)
class PassCost:
    """FLOPs and bytes of a forward and a backward pass, all samples together; see `Cost`."""

    parameters: int
    trained: int
    narrow: int
    forward: int
    total: int
    kept: int
    kept_fixed: int
    peak: int
    peak_fixed: int


def run_once(shape: Shape, mode: Checkpointing, samples: int) -> PassCost:
    """The second and every later micro-batch of a step: gradients are there already."""
    # The network as it is trained, in the formats it is stored in.
    with torch.device("meta"):
        unet = make_module(UNet, cast(Mapping[str, Any], json.loads(shape.config)), "the network to be counted")
        parameters = _numbers(unet.requires_grad_(True).train().parameters())
        if shape.adapter is not None:
            inject(unet, "unet", AdapterConfig.model_validate_json(shape.adapter))
    store_weights(unet, shape.weights)
    narrow = _narrowed(unet, shape.precision)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter, dtype=torch.float32)

    # What counts: every tensor that lives, and the conversions that autocast would make.
    living = Living([*unet.parameters(), *(cast(Tensor, parameter.grad) for parameter in trained)])
    formats = _Formats(shape.kind, shape.precision, living)
    for block in unet.modules():
        if type(block).__name__ in BLOCKS:
            cast(Any, block).forward = formats.again(block.forward)
    recompute(unet, mode)

    # One forward and one backward pass.
    with living:
        with formats:
            loss = _loss(unet, shape, samples)
        # Autocast is left before the backward pass, and with it go its copies of weights.
        formats.copies = None
        forward, kept, kept_fixed = living.flops, living.now - loss.nbytes, living.fixed
        loss.backward()
    return PassCost(
        parameters, _numbers(trained), _numbers(narrow),
        forward, living.flops, kept, kept_fixed, living.peak, living.peak_fixed,
    )  # fmt: skip


def _narrowed(unet: UNet, precision: str) -> list[nn.Parameter]:
    """The frozen weights, stored in bfloat16 where the recipe's precision is that; none otherwise."""
    if precision != "bf16":
        return []
    narrow = list(frozen_weights(unet))
    for parameter in narrow:
        parameter.data = parameter.data.to(torch.bfloat16)
    return narrow


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _loss(unet: UNet, shape: Shape, samples: int) -> Tensor:
    config = cast(dict[str, Any], json.loads(shape.config))
    # The embedding takes the pooled text and six numbers: original size, crop and target size.
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    with torch.device("meta"):
        x = torch.empty(samples, config["in_channels"], shape.height, shape.width)
        text = TextFeatures(
            torch.empty(samples, shape.tokens, config["cross_attention_dim"]), torch.empty(samples, pooled)
        )
        t, ids = torch.empty(samples, dtype=torch.int64), torch.empty(samples, 6)
    return predict(unet, x, t, text, ids).square().mean()


class Living(TorchDispatchMode):
    """Sums the bytes of every storage made inside that is still alive, and the FLOPs of every operation."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """`there` are tensors that were made before, which operations may write to."""
        super().__init__()
        self.now = self.peak = 0
        self.fixed = self.peak_fixed = 0
        """The part of both that is marked."""
        self.flops = 0
        self._known = {_key(tensor.untyped_storage()): weakref.ref(tensor.untyped_storage()) for tensor in there}
        self._marked: set[int] = set()

    @no_type_check  # it is called for every operation, and what checks annotations would take most of the time
    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _FORMULAS.get(cast(Any, func)._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._born(value.untyped_storage())
        return result

    def mark(self, tensor: Tensor) -> None:
        """Counts a tensor that was made inside as one that does not depend on the number of samples."""
        storage = tensor.untyped_storage()
        self._marked.add(_key(storage))
        self.fixed += storage.nbytes()
        # Made at the highest point, it is a part of that.
        if self.now == self.peak:
            self.peak_fixed = self.fixed

    @no_type_check
    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        # Views, and what is written in place, bring no bytes.
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size
            if key in self._marked:
                self._marked.remove(key)
                self.fixed -= size

        # Counted until nothing refers to it any more.
        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        if self.now > self.peak:
            self.peak, self.peak_fixed = self.now, self.fixed


@no_type_check
def _key(storage: torch.UntypedStorage) -> int:
    return cast(Any, storage)._cdata


class _Formats(TorchFunctionMode):
    """Autocast to bfloat16, and the attention kernel that each device takes.

    What is cast is listed in torch's documentation of autocast; of it this network uses what stands below.
    """

    def __init__(self, kind: Kind, precision: Precision, living: Living) -> None:
        super().__init__()
        self.living = living
        self.kind: Kind = kind
        self.active = precision == "bf16"
        self.copies: dict[int, Tensor] | None = {}
        """Of weights, kept until autocast is left. None in the backward pass: what is made there is a block's own."""

    def again(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward`, in these formats also when it is called by the backward pass."""

        def formatted(*inputs: Any, **named: Any) -> Any:
            # The forward pass runs within these formats already.
            if self.copies is not None:
                return forward(*inputs, **named)
            with self:
                return forward(*inputs, **named)

        return formatted

    @no_type_check
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = self._format(func)
        if dtype is not None:
            args = tuple(self._cast(value, dtype) for value in args)
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    @no_type_check
    def _format(self, func: Callable[..., Any]) -> torch.dtype | None:
        if not self.active:
            return None
        if func in _PRODUCTS:
            return torch.bfloat16
        # Of the norms a GPU's autocast makes float32, a CPU's leaves them as they come.
        if self.kind == "cuda" and func in (functional.group_norm, functional.layer_norm):
            return torch.float32
        return None

    @no_type_check
    def _cast(self, value: object, dtype: torch.dtype) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        # Of a weight there is one copy, whatever the number of samples.
        if self.copies is not None and id(value) in self.copies:
            return self.copies[id(value)]
        copy = value.to(dtype)
        self.living.mark(copy)
        if self.copies is not None and value.requires_grad:  # of frozen weights autocast keeps nothing
            self.copies[id(value)] = copy
        return copy

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        """torch would break attention up on the meta device, which no GPU does."""
        kernel = _FLASH if self.kind == "cuda" and query.dtype == torch.bfloat16 else _FLASH_ON_CPU
        return kernel(query, key, value)[0]


_PRODUCTS: frozenset[object] = frozenset(
    (
        functional.linear,
        functional.conv2d,
        functional.scaled_dot_product_attention,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.einsum,
    )
)
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention.default
_FLASH_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
"""Saves what the float32 kernel of a GPU does: query, key, value, result, and one number per row."""


def _attention_flops(query: Tensor, key: Tensor) -> int:
    """Scores and their product with the values, two FLOPs each."""
    batch, heads, rows, width = query.shape
    return 4 * batch * heads * rows * key.shape[-2] * width


def _attention_forward(query: Tensor, key: Tensor, *_: object, **__: object) -> int:
    return _attention_flops(query, key)


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, *__: object, **___: object) -> int:
    """Twice the forward pass, as for every matrix product: what flash kernels compute again is theirs."""
    return 2 * _attention_flops(query, key)


# torch counts five products in a flash backward pass, its own recomputation included, and none at all on a CPU.
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention: _attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
