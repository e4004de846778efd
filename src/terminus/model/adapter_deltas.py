"""The differences that an adapter makes to a weight, in float32: the formulas of the papers, each once.

LoRA 2106.09685, DoRA 2402.09353, LoHa 2108.06098 (FedPara), LoKr 2309.14859 (LyCORIS). Shapes are checked by running
the same formulas on tensors without storage, so a file that does not fit is refused before any weight changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from terminus.errors import UserError

_ALGORITHMS = {
    "LoRA": ({"down", "up"}, {"mid", "up_bias", "diff_b"}),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2", "diff_b"}),
    "LoKr": (
        set[str](),
        {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff_b"},
    ),
    "full": (set[str](), {"diff", "diff_b"}),
    "norm": (set[str](), {"w_norm", "b_norm"}),
}
"""Factors that must be there, and that may."""
_EXTRAS = {"alpha", "scalar", "dora_scale", "magnitude"}
_LOKR_PAIRS = (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b"))


@dataclass(frozen=True)
class Layer:
    """The factors that a file holds for one module, and the number in front of their product."""

    algorithm: str
    factors: Mapping[str, Tensor]
    scale: float
    dora: bool

    def weight_delta(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"] | None:
        """Added to `weight` at strength 1, float32; None when only the bias changes. DoRA alone looks at the values."""
        product = _product(self.algorithm, _on(self.factors, weight.device))
        if product is None:
            return None
        delta = _like(product * self.scale, weight)
        # DoRA gives the whole new weight, from which the old one is taken off again.
        return _decomposed(delta, weight.float(), _on(self.factors, weight.device)) - weight if self.dora else delta

    def bias_delta(self, bias: Float[Tensor, " out"]) -> Float[Tensor, " out"] | None:
        """Added to `bias` at strength 1, float32. Alpha is for products of factors and for the bias of one."""
        total: Tensor | None = None
        for name, scale in (("diff_b", 1.0), ("b_norm", 1.0), ("up_bias", self.scale)):
            if name in self.factors:
                part = _like(self.factors[name].to(bias.device, torch.float32) * scale, bias)
                total = part if total is None else total + part
        return total

    @property
    def changes_weight(self) -> bool:
        return not self.factors.keys() <= {"diff_b", "b_norm"}

    @property
    def changes_bias(self) -> bool:
        return not self.factors.keys().isdisjoint({"diff_b", "b_norm", "up_bias"})


@dataclass(frozen=True)
class AdapterScaling:
    """Scale factors from a configuration beside the tensors (peft); None where it does not say."""

    alpha: float | None = None
    rank: int | None = None
    by_root: bool = False
    """rsLoRA, 2312.03732: alpha / sqrt(rank)."""


def build_layer(factors: Mapping[str, Tensor], scaling: AdapterScaling, name: str, where: str) -> Layer:
    """Recognises the algorithm by its factors; UserError when some are missing or belong to several algorithms."""
    empty = sorted(key for key, value in factors.items() if not value.numel())
    if empty:
        raise UserError(
            f"The {empty[0]} of {name} has the shape {list(factors[empty[0]].shape)}: no numbers",
            where=where,
            rule="A layer of an adapter has a rank of at least 1",
            fix="The file is damaged; download it again",
        )
    # The algorithm whose factors are all here, with no others beside them.
    present = factors.keys() - _EXTRAS
    for algorithm, (needed, optional) in _ALGORITHMS.items():
        if present and needed <= present <= needed | optional and _complete(algorithm, present):
            break
    else:
        raise UserError(
            f"{name} has {', '.join(sorted(factors))}: not the factors of one adapter",
            where=where,
            rule="LoRA has down and up (and mid), LoHa hada_w1_a to hada_w2_b, LoKr lokr_w1 and lokr_w2 or halves",
            fix="The file may be cut or merged from two; download it again",
        )
    # Magnitudes come on top of any of them.
    dora = not factors.keys().isdisjoint({"dora_scale", "magnitude"})
    used = {key: value.detach() for key, value in factors.items() if key not in ("alpha", "scalar")}
    return Layer(algorithm, used, _scale(algorithm, factors, scaling, name, where), dora)


def _complete(algorithm: str, present: set[str]) -> bool:
    if algorithm == "LoKr":
        # Either side of the product is whole or in two halves, never both.
        halves = [(whole in present) != ({a, b} <= present) for whole, a, b in _LOKR_PAIRS]
        return all(halves) and ("lokr_t2" not in present or "lokr_w2_a" in present)
    return algorithm != "LoHa" or ("hada_t1" in present) == ("hada_t2" in present)


def _scale(algorithm: str, factors: Mapping[str, Tensor], scaling: AdapterScaling, name: str, where: str) -> float:
    """alpha / rank; alpha is the rank where nothing says otherwise."""
    numbers: dict[str, float] = {}
    for key in ("alpha", "scalar"):
        if key in factors:
            if factors[key].numel() != 1:
                raise UserError(f"{name}: {key} has {factors[key].numel()} numbers, not one", where=where)
            numbers[key] = factors[key].item()
    # The file's own alpha counts before that of a configuration.
    scalar, alpha = numbers.get("scalar", 1.0), numbers.get("alpha", scaling.alpha)
    rank = _rank(factors) or scaling.rank
    if rank is None or alpha is None:
        return float(scalar)
    return float(scalar * alpha / (rank**0.5 if scaling.by_root else rank))


def _rank(factors: Mapping[str, Tensor]) -> int | None:
    """None where there is no product of low rank, hence nothing that alpha scales (LyCORIS, full factors of LoKr)."""
    for key in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if key in factors:
            return max(1, factors[key].shape[0] if factors[key].ndim else 1)
    return None


def _product(algorithm: str, factors: Mapping[str, Tensor]) -> Tensor | None:
    if algorithm == "LoRA":
        return _lora(factors)
    if algorithm == "LoHa":
        # LoHa: two products of low rank, multiplied element by element.
        first, second = _hadamard(factors, "1"), _hadamard(factors, "2")
        if first.shape != second.shape:
            raise ValueError(f"changes of {list(first.shape)} and {list(second.shape)}")
        return first * second
    if algorithm == "LoKr":
        return _kronecker(factors)
    return factors.get("diff") if algorithm == "full" else factors.get("w_norm")


def _lora(factors: Mapping[str, Tensor]) -> Tensor:
    up, down = factors["up"].flatten(1), factors["down"]
    if "mid" in factors:  # Tucker: 1 × 1, then k × k between the ranks, then 1 × 1
        return torch.einsum("o p, p q k l, q i -> o i k l", up, factors["mid"], down.flatten(1))
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _hadamard(factors: Mapping[str, Tensor], number: str) -> Tensor:
    a, b = factors[f"hada_w{number}_a"], factors[f"hada_w{number}_b"]
    if f"hada_t{number}" in factors:
        return torch.einsum("p q k l, p o, q i -> o i k l", factors[f"hada_t{number}"], a, b)
    return a @ b


def _kronecker(factors: Mapping[str, Tensor]) -> Tensor:
    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        a, b = factors["lokr_w2_a"], factors["lokr_w2_b"]
        second = torch.einsum("p q k l, p o, q i -> o i k l", factors["lokr_t2"], a, b)
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    # A matrix beside a kernel counts as one of 1 × 1.
    return torch.kron(first[(...,) + (None,) * (second.ndim - first.ndim)], second.contiguous())


def _decomposed(delta: Tensor, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """The learned magnitude times the direction of the changed weight (DoRA, eq. 5).

    peft keeps one magnitude per output. LyCORIS writes [out, 1, ...] for that, and [1, in, ...] for one per input.
    """
    magnitude = factors["magnitude"] if "magnitude" in factors else factors["dora_scale"]
    inputs = weight.shape[1]
    # Which axis the magnitudes are for is told by their shape alone, and only LyCORIS has both.
    per_input = "dora_scale" in factors and inputs > 1 and tuple(magnitude.shape[:2]) == (1, inputs)
    axis = 1 if per_input else 0
    if magnitude.numel() != weight.shape[axis]:
        raise ValueError(f"a magnitude of {list(magnitude.shape)}")
    changed = weight + delta
    others = [dim for dim in range(weight.ndim) if dim != axis]
    # Where the changed weight is 0 it has no direction: 0 then, and not 0 / 0.
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    return changed * torch.where(norm > 0, magnitude.reshape(norm.shape) / norm, 0.0)


def _like(delta: Tensor, parameter: Tensor) -> Tensor:
    """Linear layers and 1 × 1 convolutions may be written as each other, and LyCORIS flattens k × k kernels."""
    flat = delta.shape == (parameter.shape[0], parameter[0].numel()) if parameter.ndim else False
    if delta.shape != parameter.shape and not flat and _squeezed(delta.shape) != _squeezed(parameter.shape):
        raise ValueError(f"a change of {list(delta.shape)}")
    return delta.reshape(parameter.shape)


def _squeezed(shape: torch.Size) -> tuple[int, ...]:
    sides = list(shape)
    while len(sides) > 2 and sides[-1] == 1:
        sides.pop()
    return tuple(sides)


def _on(factors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, torch.float32) for key, value in factors.items()}
