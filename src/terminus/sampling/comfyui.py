"""What a ComfyUI picture says of itself: the graph of nodes that drew it, read as data.

The graph (`prompt`) maps ids to nodes: a class name and inputs, each a value or a link [id, output]. Nothing is
executed and no class is looked up: a sampler is a node that has steps and a seed, and a text is whatever text lies
upstream of its "positive" input. So nodes of extensions are understood as far as they name their inputs as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

_NODES = 10_000
"""Of a graph that is looked at."""
_SAMPLERS = 32
"""That are looked at in search of the first pass."""
_LARGEST = 2**64
"""Seeds are smaller."""
_TEXTS = ("text", "text_g", "text_l", "value", "string", "prompt")
_MODELS = ("ckpt_name", "unet_name")
_SINGLE = {
    "noise_seed": "Seed",
    "seed": "Seed",
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg": "CFG scale",
    "denoise": "Denoising strength",
}
"""Inputs of a sampler, or of the nodes that it is put together from, by the names that A1111 gave them."""

Node = Mapping[str, Any]
Graph = Mapping[str, Node]


class Reading(NamedTuple):
    """What the graph says; empty texts where none was found."""

    prompt: str
    negative: str
    settings: dict[str, str]


def understand(stored: object) -> Reading | None:
    """The first sampling pass of the graph, or None if there is no sampler in it."""
    graph = _graph(stored)
    samplers = [name for name, node in graph.items() if _is_sampler(graph, node)]
    if not samplers:
        return None
    # A later pass has an earlier one upstream; the first pass has none.
    others, looked_at = set(samplers), samplers[:_SAMPLERS]
    first = next((name for name in looked_at if not others & set(list(_upstream(graph, name))[1:])), samplers[0])
    inputs = _inputs(graph[first])
    guider = _node(graph, inputs.get("guider"))
    sides = inputs if "positive" in inputs or guider is None else _inputs(guider)
    settings = _settings(graph, first)
    if len(samplers) > 1:
        settings["Passes"] = str(len(samplers))
    positive = sides.get("positive", sides.get("conditioning"))
    texts = _text(graph, positive, other="negative"), _text(graph, sides.get("negative"), other="positive")
    return Reading(*texts, settings)


def _graph(stored: object) -> Graph:
    if not isinstance(stored, dict):
        return {}
    nodes = list(cast(dict[str, Any], stored).items())[:_NODES]
    return {name: cast(Node, node) for name, node in nodes if isinstance(node, dict) and "class_type" in node}


def _inputs(node: Node) -> Mapping[str, Any]:
    inputs = node.get("inputs")
    return cast(Mapping[str, Any], inputs) if isinstance(inputs, dict) else {}


def _node(graph: Graph, value: object) -> Node | None:
    """The node that a link points to."""
    name = _link(value)
    return None if name is None else graph.get(name)


def _link(value: object) -> str | None:
    if not isinstance(value, list):
        return None
    parts = cast("list[object]", value)
    return parts[0] if len(parts) == 2 and isinstance(parts[0], str) and isinstance(parts[1], int) else None


def _is_sampler(graph: Graph, node: Node) -> bool:
    """KSampler and its kin hold seed and steps; the taken-apart kind has links to noise and sigmas."""
    inputs = _inputs(node)
    whole = "steps" in inputs and bool({"seed", "noise_seed"} & inputs.keys()) and "latent_image" in inputs
    return whole or ("sigmas" in inputs and "latent_image" in inputs and _node(graph, inputs["sigmas"]) is not None)


def _upstream(graph: Graph, start: str, without: str = "") -> Iterator[str]:
    """`start`, then every node that it depends on but through the input `without`, nearest first; rings end."""
    queue, seen = [start], {start}
    for name in queue:
        yield name
        for key, value in _inputs(graph[name]).items():
            link = None if key == without else _link(value)
            if link is not None and link in graph and link not in seen:
                seen.add(link)
                queue.append(link)


def _settings(graph: Graph, sampler: str) -> dict[str, str]:
    found: dict[str, str] = {}
    size: dict[str, str] = {}
    for name in _upstream(graph, sampler):
        inputs, kind = _inputs(graph[name]), str(graph[name]["class_type"])
        for key, label in _SINGLE.items():
            _keep(found, label, inputs.get(key))
        for key in ("width", "height"):
            if "batch_size" in inputs:  # an empty latent: the size that was drawn
                _keep(size, key, inputs.get(key))
        for key in _MODELS:
            _keep(found, "Model", inputs.get(key))
        if kind == "ModelSamplingDiscrete":
            _keep(found, "Prediction", inputs.get("sampling"))
            if inputs.get("zsnr") is True:
                found["Noise Schedule"] = "Zero Terminal SNR"
        if kind == "RescaleCFG":
            _keep(found, "CFG rescale", inputs.get("multiplier"))
        if isinstance(lora := inputs.get("lora_name"), str):
            weight = inputs.get("strength_model", 1)
            found["Loras"] = ", ".join(filter(None, [found.get("Loras"), f"{lora}: {weight}"]))
    if len(size) == 2:
        found["Size"] = f"{size['width']}x{size['height']}"
    return found


def _keep(found: dict[str, str], label: str, value: object) -> None:
    """The nearest node's value wins; links are followed elsewhere."""
    if isinstance(value, bool) or label in found:
        return
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < _LARGEST):
        found[label] = str(value)
    elif isinstance(value, float):
        found[label] = f"{value:g}"


def _text(graph: Graph, value: object, other: str) -> str:
    """The texts of the nearest node upstream that has any; the `other` side of nodes that pass on both is not ours."""
    start = _link(value)
    if start is None or start not in graph:
        return ""
    for name in _upstream(graph, start, without=other):
        inputs = _inputs(graph[name])
        texts = [text for key in _TEXTS if isinstance(text := inputs.get(key), str)]
        if texts:
            return "\n".join(dict.fromkeys(texts))
    return ""
