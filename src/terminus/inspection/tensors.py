"""Facts that need a file's header and its bytes, but never its tensors: sizes, hashes, metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from rich.console import Console

from terminus.errors import UserError
from terminus.inspection.findings import Hashes, NetworkFinding
from terminus.model.header import Header, TensorInfo
from terminus.progress import Meter

LONGEST = 2000
"""Characters of a text that are kept."""
_CHUNK = 1 << 20
_LARGE = 256 * _CHUNK
_SPEC = "modelspec."
_ABOUT = (
    "title", "author", "description", "date", "license", "tags", "trigger_phrase", "usage_hint", "resolution",
    "architecture", "implementation", "merged_from", "preprocessor", "encoder_layer", "timestep_range",
    "unet_dtype", "vae_dtype", "sai_model_spec",
)  # fmt: skip


def part(tensors: Iterable[TensorInfo]) -> NetworkFinding:
    """Counts of some tensors; dtypes by falling number of parameters."""
    counts: dict[str, int] = {}
    size = 0
    for info in tensors:
        counts[info.dtype] = counts.get(info.dtype, 0) + info.count
        size += info.span[1] - info.span[0]
    return NetworkFinding(sum(counts.values()), tuple(sorted(counts, key=lambda dtype: -counts[dtype])), size)


def hashes(headers: Sequence[Header], console: Console) -> Hashes:
    """SHA-256 of the files, in one pass on two cores; large files show a progress bar."""
    # ModelSpec's hash is of one file.
    stated = headers[0].metadata.get("modelspec.hash_sha256") if len(headers) == 1 else None
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    total = sum(header.path.stat().st_size for header in headers)
    bar = Meter(console, "reading", -(-total // _CHUNK), unit="MiB") if total > _LARGE else nullcontext()
    with bar as meter, ThreadPoolExecutor(1) as beside:
        # Both hashes at once: hashlib lets go of the GIL, so that two cores work.
        for chunk, behind_header in _chunks(headers):
            pending = beside.submit(tensors.update, chunk if behind_header else b"")
            whole.update(chunk)
            pending.result()
            if meter and behind_header:
                meter.advance(1)
    return Hashes(whole.hexdigest(), whole.hexdigest()[:10], tensors.hexdigest(), _verdict(stated, tensors.hexdigest()))


def _verdict(stated: str | None, computed: str) -> str | None:
    if stated is None:
        return None
    return "right" if stated.strip().lower().removeprefix("0x") == computed else "wrong"


def _chunks(headers: Iterable[Header]) -> Iterator[tuple[bytes, bool]]:
    """The bytes of the files, and whether they are behind a header."""
    for header in headers:
        try:
            with header.path.open("rb") as file:
                yield file.read(header.start), False
                while chunk := file.read(_CHUNK):
                    yield chunk, True
        except OSError as error:
            raise UserError(f"This file cannot be read ({error})", where=str(header.path)) from error


def about_tensors(metadata: Mapping[str, str]) -> dict[str, str]:
    """ModelSpec's entries for people; of a thumbnail only its length."""
    found = {key: clipped(metadata[_SPEC + key]) for key in _ABOUT if metadata.get(_SPEC + key, "").strip()}
    thumbnail = metadata.get(_SPEC + "thumbnail")
    return found | ({"thumbnail": f"{len(thumbnail)} characters"} if thumbnail else {})


def other_keys(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Keys of the metadata that nothing else here shows."""
    shown = (_SPEC, "ss_", "terminus", "format")
    return tuple(sorted(clipped(key, 60) for key in metadata if not key.startswith(shown)))[:40]


def clipped(text: str, longest: int = LONGEST) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"
