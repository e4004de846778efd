"""Preparation on a Ray cluster: the settings, and what the cluster must fulfil to give the bytes of this machine.

Ray runs whatever is sent to it, so this side asks for a token unless told otherwise. Nothing here starts Ray, opens
a dashboard or reports anything: a cluster is somebody's decision, see `docs/cluster.md`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

from pydantic import Field

from terminus.config.base import Config
from terminus.errors import UserError

REACH_SECONDS = 5.0
"""For a connection to the head; Ray itself tries for two minutes and then ends the process."""
ANSWER_SECONDS = 120.0
"""For a node to start Python and import this package."""

_PACKAGES = ("daft", "numpy", "pillow", "pyarrow", "simplejpeg", "torch")
_SILENT = {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


class NativeEngine(Config):
    """All cores of this machine, in this process."""

    kind: Literal["native"]
    """This machine."""


class RayEngine(Config):
    """The nodes of a running Ray cluster; the command itself runs on one of them."""

    kind: Literal["ray"]
    """A Ray cluster."""
    address: str = Field(pattern=r"^(auto|[^/\s]+:[0-9]{1,5})$")
    """HOST:PORT of its head; auto: of the cluster that this machine belongs to."""


Engine = Annotated[NativeEngine | RayEngine, Field(discriminator="kind")]


def connect(engine: RayEngine) -> None:
    """Joins the cluster, and checks that every node would compute the same. `UserError` says what is wrong."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_DASHBOARD": "1"}
    try:
        ray = _ray()
    except ImportError:
        raise UserError(
            "ray is not installed",
            where="data.engine",
            rule="A cluster is reached through Ray, which is not installed by default",
            fix="pip install 'terminus-xl[ray]'",
        ) from None
    if engine.address != "auto":
        _reach(engine.address)
    try:
        ray.init(
            address=engine.address, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": _SILENT}
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _unusable(engine.address, (str(error).splitlines() or ["no answer"])[0])
    # Every node must make the bytes that this machine would make.
    here = environment_fingerprint()
    found = _on_every_node(environment_fingerprint)
    if not found:
        _unusable(engine.address, "no node has a CPU to offer")
    for node, there in found.items():
        other = [f"{name} {there.get(name)}, not {here[name]}" for name in here if there.get(name) != here[name]]
        if other:
            raise UserError(
                f"{node} has {'; '.join(other)}",
                where=f"data.engine ({engine.address})",
                rule="All nodes run the same code, or rows would depend on where they were made",
                fix="Install the same environment on all of them (docs/cluster.md).",
            )


def environment_fingerprint() -> dict[str, str]:
    """All that the bytes of a row depend on: versions of packages, and a hash of our own code."""
    own = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        own.update(path.read_bytes())
    return {"terminus": own.hexdigest()[:12]} | {name: metadata.version(name) for name in _PACKAGES}


def require_shared_folders(folders: Iterable[Path]) -> None:
    """Raises `UserError` unless every node sees these folders as this machine does."""
    for folder in folders:
        wanted = sight(os.fsencode(folder))
        blind = [node for node, seen in _on_every_node(sight, os.fsencode(folder)).items() if seen != wanted]
        if blind:
            raise UserError(
                f"this folder is not the same on {', '.join(blind[:5])}",
                where=os.fsencode(folder).decode(errors="backslashreplace"),
                rule="The nodes of a cluster read the images themselves",
                fix="Put them on a file system that all nodes mount there, read tars or tables, or use engine native.",
            )


def sight(folder: bytes) -> int | None:
    """When the folder last changed, in whole seconds; None where there is none."""
    try:
        return int(os.stat(folder).st_mtime)
    except OSError:
        return None


def losses() -> tuple[type[Exception], ...]:
    """The errors by which Ray says that a node, or what it held, is gone."""
    errors = _ray().exceptions
    return errors.ObjectLostError, errors.ActorDiedError, errors.ActorUnavailableError, errors.NodeDiedError


def _ray() -> Any:
    """By name, because Ray is optional and its types are not there to check without it."""
    importlib.import_module("ray.util.scheduling_strategies")
    return importlib.import_module("ray")


def _on_every_node(function: Callable[..., Any], *given: object) -> dict[str, Any]:
    """The results of a function on each node that computes."""
    ray = _ray()
    task, at = ray.remote(function), ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    # A task on each node that computes, which itself takes no CPU there.
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    asked = [
        task.options(num_cpus=0, scheduling_strategy=at(node["NodeID"], soft=False)).remote(*given) for node in nodes
    ]
    names = [f"node {node['NodeManagerHostname']} ({node['NodeID'][:8]})" for node in nodes]
    answers: dict[str, Any] = {}
    for name, one in zip(names, asked, strict=True):
        try:
            answers[name] = ray.get(one, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            # Ray wraps what was raised on the node; the last line says it.
            said = (str(cast(object, getattr(error, "cause", None)) or error).strip().splitlines() or ["no answer"])[-1]
            raise UserError(
                f"{name} cannot compute ({said})",
                where="data.engine",
                rule="Every node needs this package and what it needs, in the Python that Ray runs there",
                fix="Install the same environment on all of them (docs/cluster.md).",
            ) from None
    return answers


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        _unusable(address, str(error))


def _unusable(address: str, reason: str) -> NoReturn:
    raise UserError(
        f"this Ray cluster cannot be used ({reason})",
        where=f"data.engine ({address})",
        rule="It must be running, and this machine a node of it that has its token (RAY_AUTH_TOKEN_PATH)",
        fix="Start it as docs/cluster.md says, or use engine native.",
    ) from None
