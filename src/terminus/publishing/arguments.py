"""Arguments of `terminus publish`, checked before torch is imported."""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from terminus.errors import UserError


def check_repository(name: str) -> None:
    """UserError for what is no name of a repository on the Hub."""
    try:
        validate_repo_id(name)
        named = "/" in name
    except HFValidationError:
        named = False
    if not named:
        raise UserError(
            f"{name!r:.100} is no repository",
            rule='A repository of the Hub is "owner/name", of letters, digits, ".", "-" and "_"',
        )
