"""How the workers of a server are started: what all of them do to their images, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from terminus.serving.safety_rules import SafetyRules


@dataclass(frozen=True)
class WorkerSetup:
    """The options of the command line that reach every worker."""

    threads: int | None = None
    """CPU threads of each; None is all cores but one."""
    safety: SafetyRules | None = None
    """A classifier that every finished image passes."""
    signer: tuple[Path, Path] | None = None
    """Certificates and key of whoever signs the images' content credentials."""
