"""`.eval_results/terminus.yaml`: the card's numbers once more, in the form that the Hub is moving to.

The Hub shows such rows for data sets that are benchmarks there; the `model-index` of the card stays the main form.
"""

from __future__ import annotations

import yaml

from terminus.card.facts import FinishedRun
from terminus.card.metadata import evaluation_results

FOLDER = ".eval_results"


def write_eval_results(run: FinishedRun) -> None:
    """One file of all rows; none for a run that was not evaluated."""
    rows: list[dict[str, object]] = []
    for result in evaluation_results(run):
        rows.append(
            {
                "dataset": {"id": f"terminus/{result.dataset_type}", "task_id": str(result.metric_type)},
                "value": result.metric_value,
                **({"date": run.finished} if run.finished else {}),
                "notes": str(result.metric_name),
            }
        )
    path = run.folder / FOLDER / "terminus.yaml"
    if rows:
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
