"""The metadata of a ComfyUI image: the graph of nodes that drew it, read as data.

The graph (`prompt`) maps ids to nodes: a class name and inputs, each a value or a link [id, output]. Nothing is
executed and no class is looked up: a sampler is a node that has steps and a seed, and a text is whatever text lies
upstream of its "positive" input. So nodes of extensions are understood as far as they name their inputs as usual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

_NODES = 10_000
"""Most nodes of a graph that are looked at."""
_SAMPLERS = 32
"""Most samplers that are looked at in search of the first pass."""
_LARGEST = 2**64
"""Integers from here on are left out; seeds are smaller."""
_DEEPEST = 16
"""Nodes that a text is put together through."""
_LONGEST = 1 << 16
"""Characters of a text that is put together."""
_TEXT = re.compile(r"(text|string)(_?[a-z1-9])?|value|prompt")
"""Inputs that hold a text, or a part of one."""
_SIZES = {"width": "width", "height": "height", "empty_latent_width": "width", "empty_latent_height": "height"}
_MODELS = ("ckpt_name", "base_ckpt_name", "unet_name")
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


class GraphFacts(NamedTuple):
    """Prompt and settings from a graph; empty texts where none was found."""

    prompt: str
    negative: str
    settings: dict[str, str]


def understand(stored: object) -> GraphFacts | None:
    """The first sampling pass of the graph, or None if there is no sampler in it."""
    graph = _graph(stored)
    samplers = [name for name, node in graph.items() if _is_sampler(graph, node)]
    if not samplers:
        return None
    # Later passes refine what the first one was asked for.
    first = _first_pass(graph, samplers)
    settings = _settings(graph, first)
    if len(samplers) > 1:
        settings["Passes"] = str(len(samplers))
    sides = _sides(graph, first)
    # A guider without a negative side calls its prompt "conditioning".
    positive = sides.get("positive", sides.get("conditioning"))
    return GraphFacts(_side(graph, positive, "positive"), _side(graph, sides.get("negative"), "negative"), settings)


def _first_pass(graph: Graph, samplers: list[str]) -> str:
    """The sampler that has no other one upstream; a later pass has."""
    others = set(samplers)
    for name in samplers[:_SAMPLERS]:
        above = list(_upstream(graph, name))[1:]
        if others.isdisjoint(above):
            return name
    return samplers[0]


def _sides(graph: Graph, sampler: str) -> Mapping[str, Any]:
    """The inputs that hold both prompts: the sampler's, its guider's, or those of a node above that passes them on."""
    inputs = _inputs(graph[sampler])
    # Samplers in pieces have their prompts at a guider.
    guider = _node(graph, inputs.get("guider"))
    sides = inputs if "positive" in inputs or guider is None else _inputs(guider)
    if "positive" in sides or "conditioning" in sides:
        return sides
    for name in _upstream(graph, sampler):
        above = _inputs(graph[name])
        if "positive" in above:
            return above
    return sides


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
    # The list grows while it is gone through, so nodes come by their distance.
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
    loras: list[str] = []
    # Nearest first: what a node close to the sampler says stands.
    for name in _upstream(graph, sampler):
        inputs, kind = _inputs(graph[name]), str(graph[name]["class_type"])
        for key, label in _SINGLE.items():
            _keep(found, label, _value(graph, inputs.get(key)))
        for key, side in _SIZES.items():
            if "batch_size" in inputs:  # an empty latent: the size that was drawn
                _keep(size, side, _value(graph, inputs.get(key)))
        for key in _MODELS:
            _keep(found, "Model", inputs.get(key))
        # Nodes that say what the model predicts, and how it is guided.
        if kind == "ModelSamplingDiscrete":
            _keep(found, "Prediction", inputs.get("sampling"))
            if inputs.get("zsnr") is True:
                found["Noise Schedule"] = "Zero Terminal SNR"
        if kind == "RescaleCFG":
            _keep(found, "CFG rescale", inputs.get("multiplier"))
        loras += _loras(inputs)
    if loras:
        found["Loras"] = ", ".join(loras)
    if len(size) == 2:
        found["Size"] = f"{size['width']}x{size['height']}"
    return found


def _loras(inputs: Mapping[str, Any]) -> Iterator[str]:
    """LoRAs of a loader of one, or of one that holds an object for each."""
    if isinstance(lora := inputs.get("lora_name"), str) and lora != "None":
        yield f"{lora}: {inputs.get('strength_model', inputs.get('lora_model_strength', 1))}"
    for value in inputs.values():
        entry = cast(Mapping[str, Any], value) if isinstance(value, dict) else {}
        if isinstance(lora := entry.get("lora"), str) and entry.get("on") is not False:
            yield f"{lora}: {entry.get('strength', 1)}"


def _keep(found: dict[str, str], label: str, value: object) -> None:
    """The nearest node's value wins."""
    if isinstance(value, bool) or label in found:
        return
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < _LARGEST):
        found[label] = str(value)
    elif isinstance(value, float):
        found[label] = f"{value:g}"


def _value(graph: Graph, value: object) -> object:
    """A number or a name; if it is a link to a node that only holds one, what that holds."""
    node = _node(graph, value)
    return value if node is None else _inputs(node).get("value")


def _side(graph: Graph, value: object, side: str) -> str:
    """The text of the nearest node upstream that has any; the other side of nodes that pass on both is not ours."""
    if isinstance(value, str):  # some loaders hold the text themselves
        return value
    start, other = _link(value), "negative" if side == "positive" else "positive"
    if start is None or start not in graph:
        return ""
    known: dict[str, str] = {}
    for name in _upstream(graph, start, without=other):
        if graph[name]["class_type"] == "ConditioningZeroOut":  # whatever lies upstream of it has no effect
            return ""
        own = _inputs(graph[name]).get(side)
        if text := _text(graph, name, known) or (own if isinstance(own, str) else ""):
            return text
    return ""


def _text(graph: Graph, name: str, known: dict[str, str], deep: int = 0) -> str:
    """The text of a node: its own texts, and those of the nodes that its text inputs come from."""
    if name in known or name not in graph or deep > _DEEPEST:
        return known.get(name, "")
    known[name] = ""  # rings end here, and each node is put together once
    inputs = _inputs(graph[name])
    parts: list[str] = []
    for key, value in inputs.items():
        if _TEXT.fullmatch(key) and sum(map(len, parts)) < _LONGEST:
            linked = _link(value)
            parts.append(value if isinstance(value, str) else _text(graph, linked or "", known, deep + 1))
    known[name] = _joined(parts, inputs.get("delimiter"))
    return known[name]


def _joined(parts: list[str], between: object) -> str:
    if isinstance(between, str):
        return between.join(part for part in parts if part)
    # Without a delimiter the same text through two inputs is one text.
    return "\n".join(part for part in dict.fromkeys(parts) if part)
