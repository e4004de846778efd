"""Options of the server that are checked before anything is imported: where it is served, and on which devices."""

from __future__ import annotations

from terminus.errors import UserError
from terminus.model.choices import check_running


def checked_root(path: str) -> str:
    """A root path with a slash before it and none behind; UserError for what is none."""
    root = "/" + path.strip("/") if path.strip("/") else ""
    if any(char in root for char in "?#\\ ") or ".." in root.split("/"):
        raise UserError(f"--root-path {path}", rule="It is the path that a proxy serves this under, such as /terminus")
    return root


def devices_of(text: str) -> tuple[str, ...]:
    """Devices from "cpu,cuda:0"; UserError for what is none."""
    devices = tuple(part for part in text.replace(" ", "").split(",") if part) or ("auto",)
    for device in devices:
        check_running("off", "none", device)
    return devices
