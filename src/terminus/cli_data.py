"""The verbs that make and describe data, and how every verb reads its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from terminus import options
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.config.load import Loaded
    from terminus.training.recipe import Recipe


def load_recipe(recipe: str, overrides: Sequence[str] | None) -> Loaded[Recipe]:
    """The recipe of this name or path, with the command line's overrides."""
    from terminus.config.load import load
    from terminus.training.recipe import Recipe

    return load(recipe, Recipe, overrides or ())


def prepare(recipe: options.RecipeName, overrides: options.Overrides = None) -> None:
    """Turn the recipe's sources into a store of latents, with a report of every image."""
    from terminus.data.prepare import prepare as run_prepare

    loaded = load_recipe(recipe, overrides)
    run_prepare(loaded.value.data, model=loaded.value.model.codec_from)


def caption(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    limit: options.CaptionLimit = None,
    trial: options.CaptionTrial = False,
) -> None:
    """Have a vision-language model write captions for prepared images."""
    from terminus.data.captioning.run import caption as run_caption

    loaded = load_recipe(recipe, overrides).value
    if loaded.data.captioner is None:
        raise UserError(
            "Nobody is named to write captions",
            where="data.captioner",
            rule="It names the model and how it is reached",
            fix="Set data.captioner, as in recipes/caption.yaml",
        )
    run_caption(loaded.data, loaded.data.captioner, limit=limit, trial=trial, device=loaded.run.device)


def show_data(recipe: options.RecipeName, overrides: options.Overrides = None, as_json: options.AsJson = False) -> None:
    """List what the recipe's store holds: versions, images, latents, sizes, sources."""
    from rich.console import Console

    from terminus.data.store import Store
    from terminus.data.versions import listing, show

    found = listing(Store(load_recipe(recipe, overrides).value.data.store))
    if as_json:
        print(found.json)
    else:
        show(found, Console(highlight=False))
