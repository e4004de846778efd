"""Models by hub id: which files of a repository are the model, and no more of them than are read.

SDXL's own repository holds 70 GB: each network in two precisions and four formats, and all of them once more in single
files. Nothing of it that could run is fetched.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import DEFAULT_REVISION
from huggingface_hub.errors import HFValidationError

from terminus.errors import UserError
from terminus.model.naming import HubId

VARIANTS = ("", ".fp32", ".bf16", ".fp16")
"""Endings of a network that is in its folder more than once, in the order of preference: the most precise is read."""
_FOLDERS = r"(?:unet|vae|text_encoder(?:_2)?|tokenizer(?:_2)?|scheduler|vision)/"
"""The folders of a repository that are read."""
_TEXTS = re.compile(rf"(?:{_FOLDERS})?[^/]+\.json|{_FOLDERS}merges\.txt|[^/]+\.md")
_WEIGHTS = re.compile(
    rf"(?P<network>{_FOLDERS}[^./]+?)(?P<variant>\.(?:fp32|bf16|fp16))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors"
)
_RULE = 'A hub id is "owner/name", "owner/name/file.safetensors", or either with "@" and a commit, tag or branch'


def download(model: HubId) -> Path:
    """The local copy: the folder of a snapshot, or a single file in it. What is there already is not fetched again.

    Raises `UserError` for what cannot be reached and for repositories that are no one model.
    """
    try:
        # The hub's list of files; without a connection, what an earlier one has left here.
        names = _listed(model)
    except (HTTPError, HFValidationError, OSError) as error:
        folder = _cached(model, error)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        wanted = _wanted(model, names, whole=False)
    else:
        wanted = _wanted(model, names)
        folder = _fetched(model, wanted)
    return folder if "model_index.json" in wanted else folder / wanted[0]


def _listed(model: HubId) -> list[str]:
    """The files of the commit that the id means now."""
    # The commit first, so that the list is of one moment.
    hub = HfApi()
    commit = hub.model_info(model.repository, revision=model.revision or DEFAULT_REVISION).sha
    return [one.path for one in hub.list_repo_tree(model.repository, recursive=True, revision=commit)]


def _fetched(model: HubId, names: Collection[str]) -> Path:
    patterns = [glob.escape(name) for name in names]  # they are names: brackets in them are their own
    try:
        # By the name of the revision, whose commit is then remembered: without a network it is found again.
        return Path(snapshot_download(model.repository, revision=model.revision, allow_patterns=patterns))
    except (HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"This model could not be downloaded ({reason[:300]})",
            where=model.repository,
            rule="It is kept in the hub's cache (HF_HOME), which needs room for all of it",
            fix="The same command continues where it ended",
        ) from error


def _cached(model: HubId, problem: Exception) -> Path:
    """The copy that was fetched before the hub had a `problem`."""
    try:
        return Path(snapshot_download(model.repository, revision=model.revision, local_files_only=True))
    except (HFValidationError, OSError):
        raise UserError(
            "No folder has this name, and no model of this name on the hub could be reached",
            where="/".join(filter(None, (model.repository, model.file))),
            rule=f"{_RULE}; it needs a network, or a copy in the local hub cache",
            fix=f"Check the name or the connection ({type(problem).__name__})",
        ) from problem


def _wanted(model: HubId, names: Collection[str], whole: bool = True) -> list[str]:
    """The files to read, of all those that a repository has; or, without the `whole` list, of those that are here."""
    # A file that is named, a whole folder, or the only file that can be meant.
    if model.file is not None:
        if model.file in names:
            return [model.file]
        raise UserError("The repository has no file of this name", where=f"{model.repository}/{model.file}", rule=_RULE)
    if "model_index.json" in names:
        return [name for name in names if _TEXTS.fullmatch(name)] + _most_precise(names)
    files = _single_files(names)
    if whole and len(files) == 1:
        return files
    what = "Which of its files is the model cannot be known without the hub, which could not be reached"
    if whole:
        what = f"The repository is not one model: it has no model_index.json and {len(files)} single files"
    some = ", ".join(f"{model.repository}/{name}" for name in files[:5])
    raise UserError(what, where=model.repository, rule=_RULE, fix=f"Name one: {some}" if some else "")


def _single_files(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))


def _most_precise(names: Collection[str]) -> list[str]:
    """The weights that are read of each network: one variant, whole or in shards."""
    # Each network's files by variant, of which the most precise is read.
    groups: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if part := _WEIGHTS.fullmatch(name):
            groups.setdefault(part["network"], {}).setdefault(part["variant"] or "", []).append(name)
    return [name for group in groups.values() for name in group[min(group, key=VARIANTS.index)]]
