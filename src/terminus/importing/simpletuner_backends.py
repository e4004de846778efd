"""The backends of SimpleTuner as sources: where images are, how they are cut, how they mix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terminus.config.source import Plain
from terminus.importing import meaning
from terminus.importing.reading import Keys, Sourced, nearest
from terminus.importing.recipe import Draft, Left
from terminus.importing.simpletuner_keys import BACKEND_KEYS, BACKEND_WHY

TRAINER = "SimpleTuner"
_SNAPS = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}
"""Megapixels to the side that SimpleTuner makes of them, within 0.05."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHOLE = {
    "text_embeds": "a cache of encoded text; text is encoded during training",
    "image_embeds": "a cache of latents; they are in data.store",
    "conditioning": "masks come only with webdataset samples (KEY.mask.png); other conditioning is not trained here",
    "eval": "held-out images are data.validation_fraction, chosen by content",
}


@dataclass(frozen=True)
class _Source:
    """A backend that became a source."""

    name: str
    keys: Keys
    side: Sourced[int]
    """Of the square that its images approach, before it is rounded."""


def read_simpletuner_backends(draft: Draft, config: Keys, entries: Sequence[Keys]) -> None:
    """Adds the sources, and how they are cut and mixed; `config` has the defaults of all."""
    # Sources first: how all are cut and mixed depends on which there are.
    found = [source for keys in entries if (source := _source(draft, config, keys))]
    if found:
        _geometry(draft, config, found)
        _limits(draft, config, found)
        _mix(draft, config, found)
    for keys in entries:
        for key in list(keys.rest()):
            near = meaning.near(key, BACKEND_KEYS)
            draft.leave(keys, key, BACKEND_WHY.get(key, f"unknown: no key of {TRAINER} that the importer knows{near}"))


def _source(draft: Draft, config: Keys, keys: Keys) -> _Source | None:
    # Whether it holds training images, then whether there is a source that can read them.
    name = keys.text("id") or Sourced(keys.place, "")
    kind = keys.text("type") or keys.unset("type", "local")
    why = _unusable(keys)
    made = why or _place(keys, kind)
    if isinstance(made, str):
        _leave_whole(draft, keys, made)
        return None
    ours, settings = made
    side = _side(config, keys)
    named = draft.source(ours, name.value, name.origin, **settings)
    _captions(draft, config, keys, ours)
    return _Source(named, keys, side)


def _unusable(keys: Keys) -> str:
    """Why a backend gives no training images; "" if it may."""
    dataset = keys.text("dataset_type") or keys.unset("dataset_type", "image")
    off = keys.is_on("disabled") or keys.is_on("disable")
    part = keys.is_on("is_regularisation_data") or keys.is_on("is_regularization_data")
    chance = keys.number("probability")
    # The first reason that holds.
    if off:
        return f"{off.origin}; set it to false to import it"
    if dataset.value != "image":
        return _WHOLE.get(dataset.value, f"{dataset.origin}: only images are sources")
    if part:
        return (
            f"{part.origin}: its images are held to what the model draws without the adapter, which nothing here does"
        )
    if chance and chance.value <= 0:
        return f"{chance.origin}: it is never drawn from"
    return ""


def _leave_whole(draft: Draft, keys: Keys, why: str) -> None:
    """One line for a backend that is no source, with its keys."""
    name = keys.values.get("id")
    place = f"{keys.place} ({name})" if isinstance(name, str) else keys.place
    draft.left.append(Left(place[:120], ", ".join(keys.values)[:2000], why))
    for key in keys.values:
        keys.raw(key)


def _place(keys: Keys, kind: Sourced[str]) -> tuple[str, dict[str, Sourced[Plain]]] | str:
    """Kind of source and its settings, or why there is none."""
    if kind.value == "local":
        given = keys.text("instance_data_dir")
        if given is None:
            return "it names no instance_data_dir"
        return "folder", {"path": Sourced(nearest(given.value, keys.file), given.origin)}
    if kind.value == "csv":
        return _csv(keys)
    if kind.value == "huggingface":
        return _hub(keys)
    if kind.value == "webshart":
        return _shards(keys)
    if kind.value == "aws":
        return _bucket(keys)
    return f"{kind.origin}: there is no such source"


def _shards(keys: Keys) -> tuple[str, dict[str, Sourced[Plain]]] | str:
    given = keys.text("source")
    place = nearest(given.value, keys.file) if given else ""
    if given is None or not Path(place).is_dir():
        return "a webdataset source reads archives of a folder that is here, s3:// or gs://; download the shards first"
    keys.raw("metadata")
    return "webdataset", {"path": Sourced(place, given.origin)}


def _bucket(keys: Keys) -> str:
    bucket, prefix = keys.text("aws_bucket_name"), keys.text("aws_data_prefix") or keys.text("instance_data_dir")
    where = f"s3://{bucket.value}/{prefix.value if prefix else ''}" if bucket else "a bucket"
    return (
        f"loose images in {where[:120]}: a folder source reads local folders. Copy them, or pack them as tar archives "
        "for a source of kind webdataset, which reads s3://; credentials come from AWS_* in the environment"
    )


def _csv(keys: Keys) -> tuple[str, dict[str, Sourced[Plain]]] | str:
    given = keys.text("csv_file")
    if given is None:
        return "it names no csv_file"
    chosen = {"url": keys.text("csv_url_column"), "caption": keys.text("csv_caption_column")}
    columns: dict[str, Plain] = {role: name.value for role, name in chosen.items() if name}
    settings: dict[str, Sourced[Plain]] = {"path": Sourced(nearest(given.value, keys.file), given.origin)}
    if columns:
        settings["columns"] = Sourced(columns, "csv_url_column, csv_caption_column")
    return "laion", settings


def _hub(keys: Keys) -> tuple[str, dict[str, Sourced[Plain]]] | str:
    # Beside the type, or in an object of its own.
    inner = keys.table("huggingface")
    several = [one for one in (keys, inner) if one is not None]

    def text(key: str) -> Sourced[str] | None:
        return next((given for one in several if (given := one.text(key))), None)

    given, revision, split = text("dataset_name"), text("revision"), text("split")
    if given is None:
        return "it names no dataset_name"
    if revision is None or not _COMMIT.fullmatch(revision.value):
        return (
            "a data set of the hub is read at one commit here, so that every run reads the same: add a source of kind "
            f"huggingface with repo: {given.value[:80]} and its revision, 40 hexadecimal digits"
        )
    chosen = {"image": text("image_column"), "caption": text("caption_column")}
    columns: dict[str, Plain] = {role: name.value for role, name in chosen.items() if name}
    settings: dict[str, Sourced[Plain]] = {
        "repo": Sourced(given.value, given.origin),
        "revision": Sourced(revision.value, revision.origin),
    }
    if split:
        settings["split"] = Sourced(split.value, split.origin)
    if columns:
        settings["columns"] = Sourced(columns, "image_column, caption_column")
    return "huggingface", settings


def _captions(draft: Draft, config: Keys, keys: Keys, ours: str) -> None:
    given = keys.text("caption_strategy") or config.text("caption_strategy")
    if given is None or ours != "folder":
        return
    if given.value == "textfile":
        text = (
            "caption_strategy = textfile: each line of a file is another caption there; here its lines are one caption"
        )
        if text not in draft.notes:
            draft.notes.append(text)
    else:
        why = {
            "filename": "a folder here has its captions in .txt or .json files beside the images; file names are no "
            "captions",
            "instanceprompt": "one caption for all images: write it beside each as a .txt file",
            "parquet": "captions are not looked up by file name in a table; write them beside the images as .txt files",
        }
        place = keys if "caption_strategy" in keys.values else config
        draft.leave(
            place, "caption_strategy", why.get(given.value, "a folder here has its captions in .txt or .json files")
        )


def _side(config: Keys, keys: Keys) -> Sourced[int]:
    """Side in pixels of the square of the same area."""
    given = keys.number("resolution") or config.number("resolution") or keys.unset("resolution", 1024.0)
    kind = keys.text("resolution_type") or config.text("resolution_type")
    # Without a type, the number tells: nobody trains on 20 pixels, or on 20 megapixels.
    megapixels = kind.value == "area" if kind else given.value <= 20
    if not 0 < given.value < 1e5:
        keys.wrong("resolution", "pixels, or megapixels with resolution_type area")
    if not megapixels:
        return Sourced(round(given.value), given.origin)
    # Round numbers of megapixels mean the usual sides; of others the square root.
    near = [side for area, side in _SNAPS.items() if abs(given.value - area) <= 0.05]
    side = near[0] if near else round((given.value * 1e6) ** 0.5)
    return Sourced(side, f"{given.origin} megapixels")


def _geometry(draft: Draft, config: Keys, found: list[_Source]) -> None:
    """One resolution, one rule of cropping and one kind of buckets for all sources: those of the first largest."""
    # Resolution, of the largest.
    step = config.whole("aspect_bucket_alignment")
    by = step.value if step and 8 <= step.value <= 512 and step.value % 8 == 0 else 64
    largest = max(found, key=lambda one: one.side.value)
    draft.set("data.resolution", meaning.side(largest.side.value**2, by), largest.side.origin)
    for one in [one for one in found if one.side.value != largest.side.value]:
        draft.left.append(
            Left(one.side.origin, one.name, "a recipe has one resolution, the largest; make one more for it")
        )
    # Crop and buckets, of the same source; squares need no buckets.
    rules = {one.name: _crop(one.keys) for one in found}
    square, style, origin = rules[largest.name]
    if not square:
        draft.set("data.buckets.kind", "aspect", origin)
        step_origin = step.origin if step else "aspect_bucket_alignment is not set, which is 64 there"
        draft.set("data.buckets.step", by, step_origin)
        _note_areas(draft, largest.keys.text("resolution_type") or config.text("resolution_type"))
    _set_crop(draft, style, origin)
    # What the others have else is told.
    for name, rule in rules.items():
        if rule[:2] != (square, style):
            draft.left.append(Left(rule[2], name, "a recipe has one rule of cropping, that of the largest resolution"))
    draft.notes.append(
        "Images smaller than every bucket are dropped, with that reason in the report: nothing is ever enlarged. "
        f"{TRAINER} enlarges them unless minimum_image_size leaves them out. What the model is told of an image's "
        "size is that of its file here, and of the scaled image there."
    )


def _note_areas(draft: Draft, kind: Sourced[str] | None) -> None:
    if kind and kind.value == "pixel":
        draft.notes.append(
            f"{kind.origin}: there the shortest side has the resolution and the other is longer; here the area "
            "of every bucket is about the resolution squared."
        )


def _set_crop(draft: Draft, style: str, origin: str) -> None:
    if style == "random":
        draft.set("data.crop", "random", origin)
        draft.notes.append(f"{origin}: the crop coordinates that the model is told are exact here.")
    elif style not in ("center", "centre"):
        draft.left.append(Left(origin, "", "data.crop is center, random or native; the recipe has center"))


def _crop(keys: Keys) -> tuple[bool, str, str]:
    """Whether squares are cut, where, and the words that say so."""
    on, style, aspect = keys.is_on("crop"), keys.text("crop_style"), keys.text("crop_aspect")
    square = on is not None and (aspect is None or aspect.value == "square")
    words = [given.origin for given in (on, aspect, style) if given]
    where = "center"
    if on:
        where = style.value if style else "random"
    return square, where, ", ".join(words) or "crop is not set, which is false there"


def _limits(draft: Draft, config: Keys, found: list[_Source]) -> None:
    """Smallest side and largest aspect, where all sources agree."""
    # Smallest side: a number of pixels, unless it is megapixels there.
    edges = [one.keys.number("minimum_image_size") or config.number("minimum_image_size") for one in found]
    types = [one.keys.text("resolution_type") or config.text("resolution_type") for one in found]
    in_pixels = {kind.value if kind else "" for kind in types} <= {"pixel", "pixel_area"}
    given = [edge for edge in edges if edge and edge.value > 0]
    edge = _agreed(given, len(found))
    if edge and in_pixels:
        draft.set("data.filters.min_edge", round(edge.value), edge.origin)
    elif given:
        why = "data.filters.min_edge is one number of pixels for all sources; it is megapixels there, or not for all"
        draft.left.append(Left(given[0].origin, "", why))
    # Longest side divided by the shortest.
    ratios = [ratio for one in found if (ratio := one.keys.number("maximum_aspect_ratio"))]
    ratio = _agreed(ratios, len(found))
    if ratio and ratio.value >= 1:
        draft.set("data.filters.max_aspect", ratio.value, ratio.origin)
    elif ratios:
        draft.left.append(Left(ratios[0].origin, "", "data.filters.max_aspect is one number for all sources"))


def _agreed(given: Sequence[Sourced[float]], count: int) -> Sourced[float] | None:
    """The number that each of `count` sources gives; None if one gives none, or another."""
    if len(given) == count and len({one.value for one in given}) == 1:
        return given[0]
    return None


def _mix(draft: Draft, config: Keys, found: list[_Source]) -> None:
    repeats = {one.name: one.keys.whole("repeats") for one in found}
    chances = {one.name: one.keys.number("probability") or Sourced(1.0, "probability is 1") for one in found}
    repeated = {name: given for name, given in repeats.items() if given and given.value > 0}
    # By chances alone, whatever the number of images: these are exact shares here.
    uniform = config.text("data_backend_sampling")
    if uniform and uniform.value == "uniform" and len(found) > 1:
        _share(draft, chances, uniform)
        for name, given in repeated.items():
            why = "its share of the mix is exact, and so decides how often its images come"
            draft.left.append(Left(given.origin, name, why))
        return
    # In proportion to images times chance: no form here has both.
    if len({given.value for given in chances.values()}) > 1:
        why = (
            "a chance per batch, in proportion to probability times images; data.mix has exact shares (0.1) or whole "
            "repeats (3): set it by hand"
        )
        for name, given in chances.items():
            draft.left.append(Left(given.origin, name, why))
    # Repeats are further times there, and all times here.
    for name, given in repeated.items():
        draft.set(f"data.mix.{name}", given.value + 1, f"{given.origin}, which is {given.value + 1} times in all")


def _share(draft: Draft, chances: Mapping[str, Sourced[float]], uniform: Sourced[str]) -> None:
    """The chances as exact shares; the last source has the rest."""
    total = sum(given.value for given in chances.values())
    # In thousandths, as the setting takes them; the last has what rounding leaves.
    *others, last = chances
    for name in others:
        given = chances[name]
        share = max(1, round(1000 * given.value / total)) / 1000
        draft.set(f"data.mix.{name}", share, f"{given.origin}, of {total:g}; {uniform.origin}")
    draft.notes.append(
        f"{uniform.origin}: each batch is drawn from one dataset by chance there. data.mix has the same shares "
        f"exactly; {last}, the last, has the rest."
    )
