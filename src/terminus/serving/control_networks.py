"""Control networks that lie in the folders of `--models`: ControlNets and T2I-Adapters, and IP-Adapters in files.

The class of a network stands in its folder's configuration, so the kind is known without a look at any tensor. Of a
file only its tensors tell that it is an IP-Adapter: that is what `inspect` finds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terminus.errors import UserError

CONTROL_TITLES = {
    "controlnet": ("ControlNet", "Follows the lines, the depth or the pose that it was trained to read in an image."),
    "t2i": ("T2I-Adapter", "The same with a smaller network: it reads the image once, and every step follows."),
    "ip": ("IP-Adapter", "Takes subject and style from an image, as from a prompt; it acts at every step."),
}
"""Title and sentence, by kind."""
_CLASSES = {"ControlNetModel": "controlnet", "T2IAdapter": "t2i"}
_MOST = 1 << 20
"""Bytes of a configuration."""


def control_kind(path: Path, finding: Mapping[str, Any] | None = None) -> str:
    """ "controlnet", "t2i" or "ip"; "" for what is no control network, or a file of which nothing is found yet."""
    if path.is_dir():
        return _CLASSES.get(_class_name(path / "config.json"), "")
    said = str((finding or {}).get("what", ""))
    return "ip" if "IP-Adapter" in said else ""


def check_control(kind: str, start: float, end: float) -> None:
    """UserError for a part of the way in which no network of this kind can act."""
    if not start < end:
        raise UserError(
            f"A control from {start:g} to {end:g}", where="controls",
            rule="The start is before the end, both from 0 to 1",
        )  # fmt: skip
    if kind == "ip" and (start, end) != (0.0, 1.0):
        raise UserError(
            "An IP-Adapter cannot act at some steps only", where="controls",
            rule="It acts at every step, from 0 to 1; lower its weight instead",
        )  # fmt: skip


def _class_name(config: Path) -> str:
    try:
        if config.stat().st_size > _MOST:
            return ""
        said: object = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(said.get("_class_name", "")) if isinstance(said, dict) else ""  # pyright: ignore[reportUnknownMemberType]
