"""`terminus merge` and `terminus extract` on the command line."""

from __future__ import annotations

from typing import cast

from terminus import options, options_merge
from terminus.cli_data import loading


def merge(
    models: options_merge.MergedModels,
    *,
    out: options_merge.MergeOut,
    method: options_merge.MergeMethod = "weighted-sum",
    block: options_merge.Blocks = None,
    density: options_merge.Density = None,
    seed: options_merge.MergeSeed = 0,
    decided: options_merge.MergeAs = None,
    lora: options_merge.MergedLoras = None,
    adapter: options_merge.AsAdapter = False,
    rank: options_merge.Rank = None,
    error: options_merge.LargestError = None,
    precision: options.StoredPrecision = "keep",
    shard_size: options.ShardSize = None,
) -> None:
    """Merge models, or adapters into a model or into each other; the result records what it was made of."""
    from terminus.merging import arguments
    from terminus.model.choices import DECISIONS, check_choice

    # Everything that can be said of the arguments is said before torch is imported.
    named, blocks = arguments.parse_models(models), arguments.parse_blocks(block or ())
    size = arguments.AdapterSize(rank, error)
    arguments.check_size(size, needed=False)
    if decided is not None:
        check_choice("--as", decided, DECISIONS)
    if adapter:
        arguments.check_adapter_target(out)
    else:
        arguments.check_model_target(out, precision, shard_size)
        arguments.check_no_size(size)
    if lora or adapter:
        loras = arguments.check_loras(named, lora or (), method, blocks)
        with loading():
            from terminus.merging import command
        command.merge_loras(named[0].model, loras, out, size if adapter else None, precision, shard_size, decided)
        return
    plan = arguments.MergePlan(named, cast(arguments.Method, method), blocks, density, seed, decided)
    arguments.check_merge(plan)
    with loading():
        from terminus.merging import command
    command.merge(plan, out, precision, shard_size)


def extract(
    tuned: options_merge.TunedModel,
    base: options_merge.BaseModel,
    *,
    out: options_merge.AdapterOut,
    rank: options_merge.Rank = None,
    error: options_merge.LargestError = None,
) -> None:
    """Extract an adapter (LoRA) from the difference of two models, of a rank or as exact as is asked."""
    from terminus.merging import arguments
    from terminus.model.naming import find_local

    size = arguments.AdapterSize(rank, error)
    arguments.check_size(size, needed=True)
    arguments.check_adapter_target(out)
    for model in (tuned, base):
        find_local(model)
    with loading():
        from terminus.merging import command
    command.extract_adapter(tuned, base, out, size)
