"""The verbs that make and describe data, and how every verb reads its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from terminus import options
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.config.load import Loaded
    from terminus.training.recipe import Recipe


def load_recipe(recipe: str, overrides: Sequence[str] | None) -> Loaded[Recipe]:
    """The recipe of this name or path, with the command line's overrides."""
    from terminus.config.load import load, read_tree

    # What is wrong with its name, its YAML or an override is said before torch is there.
    read_tree(recipe, overrides or ())
    with loading():
        from terminus.training.recipe import Recipe

    return load(recipe, Recipe, overrides or ())


def loading() -> AbstractContextManager[None]:
    """Around imports that take seconds: says so, where they do."""
    from rich.console import Console

    from terminus.progress import waiting

    return waiting(Console(stderr=True, highlight=False), "loading PyTorch and what runs on it")


def check_gpu(name: str | None) -> None:
    """UserError for a GPU that is not in the table."""
    if name is not None:
        from terminus.training.plan.gpus import find_gpu

        find_gpu(name)


def check_plan(plan: bool, gpu: str | None, processes: int, as_json: bool, watch: bool) -> None:
    """UserError for options of `train` that do not go together, and for a GPU that is not in the table."""
    if not plan and (gpu is not None or as_json or processes > 1):
        raise UserError(
            "--gpu, --processes and --json need --plan",
            fix="Add --plan; to train on a device set run.device, and on several start the command with torchrun",
        )
    if plan and watch:
        raise UserError(
            "--plan and --watch", rule="--plan only estimates, and --watch shows a run that exists", fix="Leave out one"
        )
    check_gpu(gpu)


def prepare(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    plan: options.PreparePlan = False,
    images: options.PlanImages = None,
    gpu: options.PlanGpu = None,
    price_gpu: options.PriceGpu = None,
    price_core: options.PriceCore = None,
    as_json: options.PlanJson = False,
) -> None:
    """Filter, resize and encode the recipe's images into the store that training reads.

    Reports why each image was kept or dropped. The same command continues an
    interrupted preparation, and adds what is new in the sources.
    """
    # Options that do not go together, then the recipe, then one of two uses.
    if not plan and (as_json or any(option is not None for option in (images, gpu, price_gpu, price_core))):
        raise UserError("--images, --gpu, --price-gpu, --price-core and --json need --plan", fix="Add --plan")
    check_gpu(gpu)
    loaded = load_recipe(recipe, overrides)
    if plan:
        from rich.console import Console

        from terminus.data.plan import Machine, Prices, plan_preparation, show_preparation_plan
        from terminus.progress import waiting
        from terminus.training.plan.planning import chosen_gpu, stage_of

        here = chosen_gpu(gpu)
        # TF32 has half the rate of bfloat16, for which the sheet's number is.
        machine = Machine(here.name, 1e12 * here.sheet / 2, here.watts)
        with waiting(Console(stderr=True, highlight=False), "counting images, memory and FLOPs"):
            training, prices = stage_of(loaded.value, here), Prices(price_gpu, price_core)
            made = plan_preparation(loaded.value.data, machine, training, images, prices)
        show_preparation_plan(made, as_json)
        return
    from terminus.data.prepare import prepare as run_prepare

    run_prepare(loaded.value.data, model=loaded.value.model.vae_from)


def caption(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    limit: options.CaptionLimit = None,
    trial: options.CaptionTrial = False,
) -> None:
    """Caption prepared images with a vision-language model (data.captioner)."""
    loaded = load_recipe(recipe, overrides).value
    if loaded.data.captioner is None:
        raise UserError(
            "No captioner is set",
            where="data.captioner",
            rule="It names the vision-language model and how to reach it",
            fix="Set data.captioner, as in recipes/caption.yaml",
        )
    from terminus.data.captioning.run import write_captions as run_caption

    run_caption(loaded.data, loaded.data.captioner, limit=limit, trial=trial, device=loaded.run.device)


class DataGroup(TyperGroup):
    """`terminus data RECIPE` lists; `list` need be written only where a recipe is called as a verb is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments that begin with no verb are those of `list`."""
        # A verb, or a request for help, stays what it is.
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


data_app = typer.Typer(cls=DataGroup, help="List or verify prepared data; `terminus data RECIPE` lists it.")


@data_app.command("verify")
def verify_data(store: options.StorePlace, remove: options.RemoveDamaged = False) -> None:
    """Compare every row with its checksum; exit code 0 only if all are intact."""
    if "://" not in store and not Path(store).expanduser().is_dir():
        raise UserError(
            "There is no prepared data here",
            where=store,
            rule="A store is what `terminus prepare` writes into data.store",
            fix="Correct the place, or prepare first",
        )
    from terminus.data.verify import verify_store

    verify_store(store, remove)


@data_app.command("list")
def show_data(recipe: options.RecipeName, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """List what the recipe's store holds: versions, images, latents, sizes, sources."""
    place = load_recipe(recipe, overrides).value.data.store
    from rich.console import Console

    from terminus.data.store import Store
    from terminus.data.versions import listing, show_versions

    found = listing(Store(place))
    if as_json:
        print(found.json)
    else:
        show_versions(found, Console(highlight=False))
