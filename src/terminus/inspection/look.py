"""`look`: decides what is at a path, by content and not by ending, and hands it to whoever knows that kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from rich.console import Console

from terminus.card.documents import Document, read_document, read_log, read_yaml
from terminus.errors import UserError
from terminus.inspection.adapter import adapter_finding, looks_like_adapter
from terminus.inspection.checkpoint import (
    UNET_IN_FILE,
    UNET_IN_FOLDER,
    file_finding,
    folder_finding,
    network_headers,
)
from terminus.inspection.findings import Finding, ImageFinding, RunFinding, Scalar, Tensors
from terminus.inspection.strangers import RULE, refuse_file, refuse_folder
from terminus.inspection.tensors import about_tensors, clipped, hashes, other_keys, part
from terminus.model.header import Header, read_header
from terminus.model.kinds import guess, has_only_ema
from terminus.model.weights import SHIPPED, at_home, resolve

_IMAGES = {b"\x89PNG": 0, b"\xff\xd8\xff": 0, b"WEBP": 8}
"""First bytes, and where they stand."""
_ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names of peft's and diffusers' files in a folder of theirs."""


def look(name: str, console: Console) -> Finding:
    """The facts of what `name` is; UserError if it is nothing that is known. `console` shows how far long reads are."""
    # First what is no safetensors file: a folder, an image, or something that is refused for what it is.
    try:
        path = at_home(name)
        if name in SHIPPED or not path.exists():
            path = resolve(name)
        if path.is_dir():
            return _folder(path, console)
        if _is_image(path):
            return _image(path)
        refuse_file(path)
    except OSError as error:
        raise UserError(f"This cannot be read ({error.strerror or error})", where=name[:300], rule=RULE) from error
    # A safetensors file, by the names of its tensors.
    header = read_header(path)
    if UNET_IN_FILE in header.tensors or has_only_ema(header):
        return file_finding(header, console)
    if looks_like_adapter(header):
        return adapter_finding(header, console)
    return _tensors([header], path, console)


def _folder(folder: Path, console: Console) -> Finding:
    # By the one file that each kind of folder always has.
    if (folder / "recipe.yaml").is_file():
        return _run(folder, console)
    if (folder / "model_index.json").is_file():
        return folder_finding(folder, console)
    # No such file: an adapter, or one network.
    files = sorted(folder.glob("*.safetensors"))
    for name in _ADAPTERS:
        if files == [folder / name]:  # beside others it would be one answer for several files
            return adapter_finding(read_header(folder / name), console)
    if files and (folder / "config.json").is_file() and _is_one(folder, files):
        return _tensors(network_headers(folder), folder, console)
    raise refuse_folder(folder)


def _is_one(folder: Path, files: list[Path]) -> bool:
    """Whether the files are one network: whole or in shards, also where other precisions of it lie beside."""
    stems = {re.sub(r"(\.(fp32|fp16|bf16))?(-\d{5}-of-\d{5})?$", "", file.stem) for file in files}
    return len(stems) == 1


def _is_image(path: Path) -> bool:
    if not path.is_file():
        raise UserError("This is not a file", where=str(path), rule=RULE)
    with path.open("rb") as file:
        first = file.read(12)
    return any(first[start:].startswith(magic) for magic, start in _IMAGES.items())


def _image(path: Path) -> ImageFinding:
    from terminus.sampling.reading import read_image_metadata

    said = read_image_metadata(path)
    return ImageFinding("image", str(path), said.kind, said.facts, said.texts)


def _tensors(headers: list[Header], path: Path, console: Console) -> Tensors:
    names = [name for header in headers for name in header.tensors]
    metadata = headers[0].metadata
    return Tensors(
        kind="tensors",
        path=str(path),
        what=_guess(names),
        tensors=part(info for header in headers for info in header.tensors.values()),
        names=tuple(clipped(name, 120) for name in names[:5]),
        hashes=hashes(headers, console),
        about=about_tensors(metadata),
        other_metadata=other_keys(metadata),
    )


def _guess(names: list[str]) -> str:
    present = set(names)
    # In this order: a ControlNet has `conv_in.weight` as well.
    for what, ending in (
        ("a ControlNet", "controlnet_cond_embedding.conv_in.weight"),
        ("a ControlNet in LDM naming", "input_hint_block.0.weight"),
        ("a UNet in diffusers' naming", UNET_IN_FOLDER),
        ("an autoencoder", "decoder.conv_in.weight"),
        ("an autoencoder", "first_stage_model.decoder.conv_in.weight"),
        ("a CLIP text encoder", "text_model.embeddings.token_embedding.weight"),
        ("a textual inversion of SDXL", "clip_g"),
        ("a textual inversion", "emb_params"),
    ):
        if ending in present:
            return what
    return guess(names)


def _run(folder: Path, console: Console) -> RunFinding:
    # A run that is going on, or was killed, lacks some of these files; each then says nothing.
    recipe = read_yaml(folder / "recipe.yaml")
    facts, pin = read_document(folder / "facts.json"), read_document(folder / "data.json")
    last = Document()
    # Only the last row; the log is not held in memory.
    for row in read_log(folder / "log.jsonl"):
        last = row
    model = folder / "model"
    seen = facts.number("images_seen") or last.number("images_seen")
    saves = sorted(path.name for path in (folder / "checkpoints").glob("images-*"))
    return RunFinding(
        kind="run",
        path=str(folder),
        name=recipe.text("run.name"),
        finished=facts.text("finished"),
        start=recipe.text("model.start"),
        images_seen=None if seen is None else int(seen),
        images_asked=_integer(recipe, "training.images"),
        last_step=_scalars(last),
        checkpoints=tuple(clipped(name, 120) for name in saves),
        data_version=_integer(pin, "version"),
        model=folder_finding(model, console) if (model / "model_index.json").is_file() else None,
    )


def _scalars(row: Document) -> dict[str, Scalar]:
    tree = cast(Mapping[str, object], row.tree) if isinstance(row.tree, Mapping) else {}
    pairs = ((clipped(key, 60), Document(value).scalar()) for key, value in tree.items())
    return {key: value for key, value in pairs if value is not None}


def _integer(document: Document, path: str) -> int | None:
    number = document.number(path)
    return None if number is None else int(number)
