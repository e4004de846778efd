"""The execution of a model's networks: number format, memory layout, compiler, and which of them hold the device's
memory.

None of it is part of what an image is: another `Running` draws the same image, up to rounding. On the CPU the
default changes nothing at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from terminus.errors import UserError
from terminus.model.choices import Compile, Offload, check_choice
from terminus.model.components import Components
from terminus.model.text import TextEncoders
from terminus.model.tiling import Tiling
from terminus.model.vae import VAE
from terminus.runtime import Precision

log = logging.getLogger("terminus")

REGIONS = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of the UNet that are compiled one by one: most of the gain for a fraction of the compiling."""
_VARIANTS = 64
"""Shapes of one class that are compiled; SDXL's residual blocks have 13 per size and batch, and torch stops at 8."""
_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Running:
    """The execution of networks; the defaults are chosen by the device."""

    precision: Precision | None = None
    """The precision that weights are held in and networks compute in; None is bf16 on a GPU and fp32 elsewhere."""
    channels_last: bool | None = None
    """Images' channels side by side in memory, as a GPU's convolutions read them; None is on a GPU alone."""
    compile: Compile = "off"
    """`blocks` compiles the UNet's blocks; `graphs` (GPU) the whole UNet, replayed as one CUDA graph."""
    offload: Offload = "none"
    """`model` keeps one of text encoders, UNet and VAE on the device at a time, the others in the computer's memory."""
    tiling: Tiling | None = None
    """When and how images pass the VAE in tiles; None is from 4 megapixels on."""

    def on(self, device: torch.device) -> Running:
        """The same with every None decided for this device; UserError for what contradicts."""
        gpu = device.type == "cuda"
        if self.compile == "graphs" and self.offload != "none":
            raise UserError(
                "CUDA graphs cannot be combined with offloading",
                rule="A graph replays work on fixed addresses, and offloading moves the weights",
                fix='Use compile="blocks" with offloading, or graphs without it',
            )
        if self.compile == "graphs" and not gpu:
            raise UserError(
                f"CUDA graphs cannot run on {device}", rule="Graphs need an NVIDIA GPU", fix='Use compile="blocks"'
            )
        return replace(
            self,
            precision=self.precision or ("bf16" if gpu else "fp32"),
            channels_last=gpu if self.channels_last is None else self.channels_last,
            tiling=self.tiling or Tiling(),
        )


def running(compile: str = "off", offload: str = "none") -> Running:
    """As a command line names it."""
    check_choice("--compile", compile, get_args(Compile))
    check_choice("--offload", offload, get_args(Offload))
    return Running(compile=cast(Compile, compile), offload=cast(Offload, offload))


def prepare_for_inference(components: Components, device: torch.device, running: Running | None = None) -> Components:
    """These networks on this device, changed in place to run like that. Once per model: it is not undone.

    The VAE computes in fp32 where its configuration says that it must. With offloading, `text.device` and
    `vae.device` are the device that they run on, wherever they wait.
    """
    how = (running or Running()).on(device)
    dtype = _DTYPES[how.precision or "fp32"]
    text, unet, vae = components.text_encoders, components.unet, components.vae.autoencoder

    # Number format and memory layout of each network.
    upcast = bool(cast(Any, vae.config).get("force_upcast", True))
    kinds = (
        (unet, dtype),
        (text.text_encoder_1, dtype),
        (text.text_encoder_2, dtype),
        (vae, torch.float32 if upcast else dtype),
    )
    for module, kind in kinds:
        nn.Module.to(module, dtype=kind)  # diffusers' own warns of what it keeps in float32, which is nothing here
    if how.channels_last:
        for module in (unet, vae):
            cast(Any, module).to(memory_format=torch.channels_last)
    components.vae.tiling = how.tiling or Tiling()

    # Where they wait and where they run, and how.
    if how.offload == "model":
        components = _in_turns(components, device)
    else:
        components.to(device)
    if how.compile != "off":
        if problem := compiler_problem(device):
            log.warning("torch.compile does not work here, so the networks run uncompiled: %s", problem)
        else:
            _compile(unet, how.compile)
    return components


def computes_in(unet: nn.Module) -> torch.dtype:
    """The dtype that the network's inputs must have, unless autocast converts them."""
    return next(unet.parameters()).dtype


def _compile(unet: nn.Module, how: Compile) -> None:
    if how == "graphs":
        _allow(_VARIANTS)
        # forward, not the module: hooks (of measurements, of adapters) stay outside of what is compiled
        compiled = torch.compile(unet.forward, mode="reduce-overhead", dynamic=False)
        cast(Any, unet).forward = compiled
        return
    compile_for_inference(unet, _VARIANTS)


def compile_for_inference(module: nn.Module, variants: int) -> None:
    """Compiles its blocks one by one, each class for up to `variants` shapes, which are static."""
    _allow(variants)
    for block in module.modules():
        if type(block).__name__ in REGIONS:
            block.compile(dynamic=False)


def _allow(variants: int) -> None:
    limits = cast(Any, torch)._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, variants)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * variants)


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work on this device; None if it does.

    Tried on the smallest function: what torch needs (a C++ compiler, Triton, headers) differs by machine.
    """

    def probe(x: Tensor) -> Tensor:
        return torch.sin(x) + x

    try:
        torch.compile(probe, dynamic=False)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


@final
@dataclass(frozen=True)
class _OffloadedTextEncoders(TextEncoders):
    """Text encoders whose weights wait elsewhere for their turn on `home`."""

    home: torch.device

    @property
    def device(self) -> torch.device:
        return self.home


class Turns:
    """Groups of modules that take turns on a device: one is there, the others wait on the CPU.

    What waits there is kept while a copy of it is on the device, so that leaving copies nothing back, apart from what
    was changed meanwhile (by an adapter).
    """

    def __init__(self, device: torch.device, waiting: torch.device | None = None) -> None:
        self.device = device
        self.waiting = waiting or torch.device("cpu")
        self.resident: Sequence[nn.Module] = ()
        self._homes: list[tuple[nn.Parameter, Tensor, int]] = []
        """For each parameter on the device: its data in waiting, and its version when it came."""

    def add(self, modules: Sequence[nn.Module], entries: Sequence[nn.Module]) -> None:
        """Calling one of `entries` brings all of `modules` to the device, with the call's tensors."""
        for module in modules:
            module.to(self.waiting)

        def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            self._bring(modules)
            return tree_map_only(Tensor, self._here, (inputs, named))

        for entry in entries:
            entry.register_forward_pre_hook(enter, with_kwargs=True)

    def _bring(self, modules: Sequence[nn.Module]) -> None:
        if self.resident is modules:
            return
        self._send_home()
        # The allocator gives back what the last group held.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        # What waits on the CPU is remembered before the modules move.
        waiting = [(parameter, parameter.data) for module in modules for parameter in module.parameters()]
        for module in modules:
            module.to(self.device)
        self._homes = [(parameter, home, _version(parameter)) for parameter, home in waiting]
        self.resident = modules

    def _send_home(self) -> None:
        for parameter, home, version in self._homes:
            # Not changed while it was there: what waited is still right, and nothing is copied.
            if _version(parameter) == version:
                parameter.data = home
        for module in self.resident:
            module.to(self.waiting)  # buffers, and what was changed or added meanwhile

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


def _version(tensor: Tensor) -> int:
    """The number of changes in place that a tensor has seen."""
    return cast(Any, tensor)._version


def _in_turns(components: Components, device: torch.device) -> Components:
    text, autoencoder = components.text_encoders, components.vae.autoencoder
    turns = Turns(device)
    text_encoders = [cast(nn.Module, text.text_encoder_1), cast(nn.Module, text.text_encoder_2)]
    turns.add(text_encoders, text_encoders)
    turns.add([components.unet], [components.unet])
    # `encode` and `decode` are no forward calls; these are what they call
    parts = (autoencoder.encoder, autoencoder.quant_conv, autoencoder.post_quant_conv, autoencoder.decoder)
    turns.add([autoencoder], [part for part in parts if isinstance(part, nn.Module)])
    if components.vision is not None:
        turns.add([cast(nn.Module, components.vision)], [cast(nn.Module, components.vision)])
    # The same autoencoder, which says where it runs and not where it waits.
    vae = VAE(autoencoder, components.vae.tiling)
    vae.device = device
    waiting = _OffloadedTextEncoders(
        text.tokenizer_1, text.tokenizer_2, text.text_encoder_1, text.text_encoder_2, device
    )
    return replace(components, text_encoders=waiting, vae=vae)
