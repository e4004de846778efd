"""One store holds what one set of rules chose."""

from __future__ import annotations

import json
from typing import cast

from terminus.data.settings import DataConfig
from terminus.data.store import Store
from terminus.errors import UserError


def check_rules(data: DataConfig, store: Store) -> None:
    """One store holds the judgements of one set of rules; rows kept under others would break these."""
    view = store.images.latest()
    if view is None or not view.count:
        return
    stored = cast(str, view.take([0], ["rules"]).column("rules")[0].as_py())
    # A rule that is younger than the store was then what its default is now.
    initial = DataConfig(store=data.store, sources=data.sources).rules
    before = _leaves(json.loads(initial)) | _leaves(json.loads(stored))
    now = _leaves(json.loads(data.rules))
    now.pop("filters.blocklists")  # may grow: what it names since is taken down
    changed = [
        f"data.{key} was {before.get(key)} and is {now.get(key)}"
        for key in sorted(now.keys() | (before.keys() - {"filters.blocklists"}))
        if before.get(key) != now.get(key)
    ]
    if not changed:
        return
    raise UserError(
        f"the images here were chosen by other rules ({'; '.join(changed)})",
        where=data.store,
        rule="Rows are only ever added, so one store holds one choice",
        fix="Set these back, or prepare into another data.store.",
    )


def _leaves(rules: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in rules.items():
        if isinstance(value, dict):
            found |= _leaves(cast("dict[str, object]", value), f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
