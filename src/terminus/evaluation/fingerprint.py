"""Which weights a number was measured on, so that no card shows the metrics of another model.

Imports nothing but the standard library: the card reads it too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def model_fingerprint(model: Path) -> str:
    """16 hex digits over the names and bytes of a model folder's safetensors files and its scheduler, or of a file."""
    digest = hashlib.sha256()
    if model.is_file():
        with model.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = [*model.rglob("*.safetensors"), *model.glob("scheduler/*.json")]
    for path in sorted(files, key=lambda path: path.relative_to(model).as_posix()):
        # Names are part of it: the same tensors in other networks are another model.
        digest.update(path.relative_to(model).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
