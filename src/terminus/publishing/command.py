"""`terminus publish`: says what would be sent, or sends it. An upload that broke off goes on where it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console

from terminus.card.command import card
from terminus.card.facts import FinishedRun, read_run
from terminus.errors import UserError
from terminus.model.convert import convert
from terminus.publishing.arguments import check_repository
from terminus.publishing.contents import PublishedFile, Terms, repository_files, single_file_name
from terminus.publishing.space import SECRET, space_files

MADE = "publish"
"""Folder in the run's that keeps the single file between an upload that broke off and the next."""


@dataclass(frozen=True)
class Publication:
    """What is sent, and where to."""

    repository: str
    files: Sequence[PublishedFile]
    terms: Terms
    space: Sequence[PublishedFile] = ()
    """Files of the Space of the same name; none without one."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def publish(
    run_dir: Path, repository: str, really: bool = False, terms: Terms | None = None, console: Console | None = None
) -> Publication:
    """Lists the files of a run's repository; with `really` it is made and they are sent.

    UserError for a name that is no repository's, a run without a card or whose card says something else than its
    files, and for what the hub refuses.
    """
    console, terms = console or Console(stderr=True), terms or Terms()
    check_repository(repository)
    run = read_run(run_dir)
    card(run_dir, check=True)
    single = single_file(run)
    found = Publication(repository, repository_files(run, repository, terms, single), terms)
    if terms.space:
        found = replace(found, space=space_files(run, repository))
    if really:
        _send(found, console)
    else:
        _list(found, run, console)
    return found


def single_file(run: FinishedRun) -> Path:
    """Made once: converting writes the same bytes every time, so what is there is the model's if it is newer."""
    model, target = run.folder / "model", run.folder / MADE / single_file_name(run)
    newest = max(path.stat().st_mtime for path in model.rglob("*") if path.is_file())
    if target.is_file() and target.stat().st_mtime >= newest:
        return target
    target.parent.mkdir(exist_ok=True)
    for old in (target, target.with_suffix(".yaml")):
        old.unlink(missing_ok=True)
    convert(model, target)
    return target


def _list(found: Publication, run: FinishedRun, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for file in found.files:
        say(f"{file.size:>14,}  {file.path}")
    kind = "private" if found.terms.private else "public"
    gated = ", behind the licence's terms" if found.terms.gated else ""
    say(f"{found.size:>14,}  bytes in {len(found.files)} files, for {found.repository} ({kind}{gated})")
    for file in found.space:
        say(f"{file.size:>14,}  spaces/{found.repository}/{file.path}")
    if run.licence is None:
        say("no licence is stated: readers may use nothing; set run.licence in the recipe")
    say("nothing was sent; add --really to send it")


def _send(found: Publication, console: Console) -> None:
    """Large files first, each of its own; then one commit of all. What the hub has already is not sent again."""
    hub = HfApi()
    if not console.is_terminal:
        disable_progress_bars()
    try:
        hub.create_repo(found.repository, private=found.terms.private, exist_ok=True)
        adds = [
            CommitOperationAdd(file.path, file.source if isinstance(file.source, bytes) else str(file.source))
            for file in found.files
        ]
        for number, (add, file) in enumerate(zip(adds, found.files, strict=True), 1):
            line = f"{number} of {len(adds)}: {file.path}, {file.size:,} bytes"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            hub.preupload_lfs_files(found.repository, [add])
        commit = hub.create_commit(found.repository, adds, commit_message="Model, card and evaluation")
        if found.terms.gated:
            hub.update_repo_settings(found.repository, gated="manual")
        if found.space:
            _send_space(found, hub)
        if found.terms.collection:
            hub.add_collection_item(found.terms.collection, found.repository, "model", exists_ok=True)
    except LocalTokenNotFoundError as error:
        fix = "Run `hf auth login`, or set HF_TOKEN"
        raise UserError("The Hub is not told who you are", where=found.repository, fix=fix) from error
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        # The client wraps what an upload of a large file met.
        cause = error.__cause__ or error
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(
            f"The upload broke off ({said[:300]})",
            where=found.repository,
            rule="What the Hub has already is not sent again",
            fix="The same command continues; a token with the right to write is needed (`hf auth login`, or HF_TOKEN)",
        ) from error
    if found.space:
        say = f"its Space is {hub.endpoint}/spaces/{found.repository}: set its secret {SECRET}, a line NAME TOKEN each"
        console.print(say, highlight=False, markup=False, soft_wrap=True)
    console.print(f"published {commit.repo_url}", highlight=False, markup=False, soft_wrap=True)


def _send_space(found: Publication, hub: HfApi) -> None:
    """After the model, which it serves."""
    private = found.terms.private
    hub.create_repo(found.repository, repo_type="space", space_sdk="docker", private=private, exist_ok=True)
    adds = [CommitOperationAdd(file.path, file.source) for file in found.space if isinstance(file.source, bytes)]
    hub.create_commit(found.repository, adds, commit_message="Serves the model", repo_type="space")
