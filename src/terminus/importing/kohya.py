"""Settings of kohya's sd-scripts: a dataset file ([general], [[datasets]], [[datasets.subsets]]), a training file.

An option of a dataset may stand at any of the levels, and the innermost counts; a training file is flat, whatever
sections it is divided into, and may name a dataset file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from terminus.errors import UserError
from terminus.importing import kohya_training, meaning
from terminus.importing.kohya_keys import DATASET_KEYS, TRAINING_KEYS, WHY
from terminus.importing.reading import Keys, Sourced, nearest, read_json_settings, read_toml, root
from terminus.importing.recipe import Draft, Left, account, data_only, slug

TRAINER = "sd-scripts"
_REPEATS = re.compile(r"(\d{1,6})_(.*)")
T = TypeVar("T")


@dataclass(frozen=True)
class _Subset:
    keys: Keys
    levels: tuple[Keys, ...]
    """From the subset outwards."""


@dataclass(frozen=True)
class _Dataset:
    levels: tuple[Keys, ...]
    subsets: tuple[_Subset, ...]


def read_kohya(path: Path) -> Draft:
    """The draft of a dataset or training file, TOML or (dataset only) JSON. `UserError` if it is neither."""
    # A dataset file: there is no more.
    keys = read_toml(path) if path.suffix.lower() == ".toml" else root(read_json_settings(path), path)
    name = slug(path.stem)
    if "datasets" in keys.values:
        draft = Draft(f"{path.name}, a dataset file of {TRAINER}", name)
        return _finished(draft, keys, None)
    # A training file, flat whatever its sections, with the dataset file that it may name.
    training = Keys(_flat(keys.values), str(path))
    draft = Draft(f"{path.name}, a training file of {TRAINER}", name)
    if given := training.text("output_name"):
        draft.name = slug(given.value)
        draft.set("run.name", given.value, given.origin)
    beside = training.text("dataset_config")
    if beside is None:
        return _finished(draft, None, training)
    other = Path(nearest(beside.value, str(path)))
    if not other.is_file():
        raise UserError(
            f"dataset_config names {beside.value}, which is not there",
            where=str(path),
            rule="It is looked for relative to this file",
            fix="Correct dataset_config, or import the dataset file itself.",
        )
    draft.what += f", with {other.name}"
    dataset = read_toml(other) if other.suffix.lower() == ".toml" else root(read_json_settings(other), other)
    return _finished(draft, dataset, training)


def is_training(values: dict[str, object]) -> bool:
    """Whether the keys of a TOML file are those of a training file."""
    return any(key in TRAINING_KEYS or key in DATASET_KEYS for key in _flat(values))


def _flat(values: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in cast("dict[str, object]", values).items():
        found |= cast("dict[str, object]", value) if isinstance(value, dict) else {key: value}
    return found


def _finished(draft: Draft, dataset: Keys | None, training: Keys | None) -> Draft:
    draft.set("run.dir", f"runs/{draft.name}", "a new folder; that trainer's own results stay where they are")
    draft.set("data.store", f"runs/{draft.name}-data", "where prepared latents are kept")
    # Levels outside all datasets, the inner one first.
    general = dataset.table("general") if dataset else None
    outer = tuple(keys for keys in (general, training) if keys is not None)
    if dataset is not None:
        datasets = [_dataset(keys, outer) for keys in dataset.tables("datasets")]
    else:
        assert training is not None
        datasets = [_Dataset(outer, ())]
    # Images: how they are cut, where they are, how often their captions are dropped.
    _geometry(draft, datasets)
    if dataset is None and training is not None:
        _folders(draft, training)
    _sources(draft, datasets)
    _dropout(draft, datasets)
    # Training, which needs the batch: steps are counted as images from here on.
    size = _batch(draft, datasets, training)
    if training is not None:
        kohya_training.read_kohya_training(draft, training, size)
    else:
        data_only(draft)
    # No key is lost: what nobody has asked for is listed with a reason, what decided something as well.
    every = _every(dataset, general, training, datasets)
    for keys in every:
        _name_the_rest(draft, keys, training is keys)
    account(draft, every)
    return draft


def _dataset(keys: Keys, outer: tuple[Keys, ...]) -> _Dataset:
    levels = (keys, *outer)
    return _Dataset(levels, tuple(_Subset(one, (one, *levels)) for one in keys.tables("subsets")))


def _every(dataset: Keys | None, general: Keys | None, training: Keys | None, datasets: list[_Dataset]) -> list[Keys]:
    # Without a dataset file the levels are `training` itself, which comes once, at the end.
    inner = [keys for one in datasets if dataset for keys in (one.levels[0], *(subset.keys for subset in one.subsets))]
    return [keys for keys in (dataset, general, *inner, training) if keys is not None]


def _name_the_rest(draft: Draft, keys: Keys, is_training_file: bool) -> None:
    known = DATASET_KEYS | TRAINING_KEYS if is_training_file else DATASET_KEYS
    for key in list(keys.rest()):
        why = WHY.get(key) or ("nothing here uses it" if key in known else "")
        if not why:
            near = meaning.near(key, known)
            why = f"unknown: no key of {TRAINER} that the importer knows{near}"
        draft.leave(keys, key, why)


def _first(levels: Sequence[Keys], read: Callable[[Keys], Sourced[T] | None]) -> Sourced[T] | None:
    """The innermost level that says it; all are read, so that none counts as unknown."""
    given = [found for keys in levels if (found := read(keys)) is not None]
    return given[0] if given else None


def _geometry(draft: Draft, datasets: list[_Dataset]) -> None:
    """Resolution, buckets and crop are of the whole recipe: those of the dataset with the most pixels."""
    # Of several resolutions the largest: pixels can be left out, and never made.
    shapes = [_shape(one.levels) for one in datasets]
    found = [shape for shape in shapes if shape is not None]
    if not found:
        draft.notes.append("No resolution is said; the recipe has the default, 1024.")
        return
    largest = max(found, key=lambda shape: shape.area)
    # A resolution there may be a rectangle; only its area counts here.
    draft.set("data.resolution", meaning.side(largest.area, largest.step), largest.origin)
    if largest.bucket:
        draft.set("data.buckets.kind", "aspect", largest.bucket.origin)
        draft.set("data.buckets.step", largest.step, "bucket_reso_steps")
        draft.notes.append(
            "enable_bucket: the buckets here have sides from half to twice the resolution and an area within 10 % "
            "below its square. Images smaller than every bucket are dropped, with that reason in the report: nothing "
            f"is ever enlarged. {TRAINER} enlarges them, or with bucket_no_upscale makes smaller buckets for them."
        )
    elif largest.width != largest.height:
        draft.notes.append(f"{largest.origin} without buckets is one shape; here it is a square of about its area.")
    for other in found:
        if other.area != largest.area:
            why = "a recipe has one resolution, the largest; make one more recipe for it"
            draft.left.append(Left(other.origin, "", why))


class _Shape(NamedTuple):
    """The cropping of a dataset's images; sides in pixels."""

    width: int
    height: int
    origin: str
    bucket: Sourced[bool] | None
    """Set where it has buckets."""
    step: int
    """Of the buckets' sides."""

    @property
    def area(self) -> int:
        return self.width * self.height


def _shape(levels: Sequence[Keys]) -> _Shape | None:
    """None if the dataset says no resolution."""
    bucket = _first(levels, lambda keys: keys.is_on("enable_bucket"))
    steps = _first(levels, lambda keys: keys.whole("bucket_reso_steps"))
    given = _first(levels, _resolution)
    if given is None:
        return None
    # A step that buckets here cannot have is replaced by that program's default.
    usable = bucket and steps and 8 <= steps.value <= 512 and steps.value % 8 == 0
    return _Shape(*given.value, given.origin, bucket, steps.value if steps and usable else 64)


def _resolution(keys: Keys) -> Sourced[tuple[int, int]] | None:
    """(width, height): 1024, [1024, 768], "1024" or "1024,768"."""
    given = keys.raw("resolution")
    if given is None:
        return None
    # As sd-scripts reads it: one number stands for both sides.
    value = given.value
    several: list[object] = list(value.split(",")) if isinstance(value, str) else [value]
    parts = cast("list[object]", value) if isinstance(value, list) else several
    sides = [side for part in parts if (side := _pixels(part)) is not None]
    complete = len(sides) == len(parts) and len(sides) in (1, 2)
    if not complete or not all(1 <= one <= 1 << 20 for one in sides):
        keys.wrong("resolution", "pixels: 1024, or [width, height]")
    return Sourced((sides[0], sides[-1]), given.origin)


def _pixels(value: object) -> int | None:
    if isinstance(value, str):
        word = value.strip()
        return int(word) if word.isascii() and word.isdigit() and len(word) < 12 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sources(draft: Draft, datasets: list[_Dataset]) -> None:
    seen: set[str] = set()
    crops: list[Sourced[bool] | None] = []
    for subset in (subset for one in datasets for subset in one.subsets):
        # Everything that decides is read first, so that no key of a subset counts as unknown.
        path = subset.keys.text("image_dir")
        repeats = _first(subset.levels, lambda keys: keys.whole("num_repeats"))
        place = nearest(path.value, subset.keys.file) if path else ""
        regular = subset.keys.is_on("is_reg") is not None
        extension = _first(subset.levels, lambda keys: keys.text("caption_extension"))
        unused = repeats is not None and repeats.value < 1
        # A folder once: a second subset of it would be the same images again.
        if path is None or regular or place in seen or unused:
            _leave_out(draft, subset, _why_unused(path is not None, regular, place in seen))
            continue
        seen.add(place)
        # What it becomes: a source, with its repeats.
        crops.append(_first(subset.levels, lambda keys: keys.flag("random_crop")))
        name = draft.source("folder", Path(place.replace("\\", "/")).name, "", path=Sourced(place, path.origin))
        if repeats and repeats.value > 1:
            draft.set(f"data.mix.{name}", repeats.value, repeats.origin)
        _extension(draft, subset.keys, extension)
    _crop(draft, crops)


def _crop(draft: Draft, given: Sequence[Sourced[bool] | None]) -> None:
    """Crops are random where they are so in every subset."""
    random = [one for one in given if one and one.value]
    if random and len(random) == len(given):
        draft.set("data.crop", "random", random[0].origin)
    elif random:
        draft.left.append(Left("random_crop", "", "only some subsets have it, and a recipe has one data.crop"))


def _why_unused(named: bool, regular: bool, again: bool) -> str:
    if regular:
        return (
            "regularization images (is_reg) count in the loss by prior_loss_weight, which nothing here does; to mix "
            "them in as ordinary images, add the folder to data.sources and give it a share in data.mix"
        )
    if not named:
        return "it names no image_dir"
    if again:
        return "the folder is a source already: the same image twice is one image here; data.mix repeats it"
    return "num_repeats is below 1"


def _leave_out(draft: Draft, subset: _Subset, why: str) -> None:
    """One line for the whole subset, with its keys."""
    keys = subset.keys
    draft.left.append(Left(keys.place, ", ".join(keys.values)[:2000], why))
    for key in keys.values:
        keys.raw(key)


def _extension(draft: Draft, keys: Keys, given: Sourced[str] | None) -> None:
    if given is None:
        text = (
            "caption_extension is not set, which is .caption there; a folder here has captions in .txt or .json files"
        )
    elif given.value.lower() == ".txt":
        text = ""
    else:
        text = f"{given.origin}: a folder here has its captions in .txt or .json files; rename them"
    if text and text not in draft.notes:
        draft.notes.append(text)


def _folders(draft: Draft, training: Keys) -> None:
    """`train_data_dir` without a dataset file: folders such as `10_cat` in it say how often their images come."""
    given = training.text("train_data_dir")
    if given is None:
        return
    place = nearest(given.value, training.file)
    inside = sorted(Path(place).iterdir()) if Path(place).is_dir() else []
    # A folder such as `10_cat`: ten times in an epoch.
    named = [(found, folder) for folder in inside if folder.is_dir() and (found := _REPEATS.fullmatch(folder.name))]
    for found, folder in named:
        name = draft.source("folder", found[2] or folder.name, "", path=Sourced(str(folder), given.origin))
        if int(found[1]) > 1:
            draft.set(f"data.mix.{name}", int(found[1]), f"the name of the folder {folder.name}")
    if not named:
        draft.source("folder", Path(place).name, "", path=Sourced(place, given.origin))
        draft.notes.append(
            f"{given.origin}: folders in it named like 10_cat say there how often images come; none is here to be "
            "read, so all their images come once. data.mix repeats sources."
        )
    _extension(draft, training, _first((training,), lambda keys: keys.text("caption_extension")))
    if training.is_on("random_crop"):
        draft.set("data.crop", "random", "random_crop = true")


def _dropout(draft: Draft, datasets: list[_Dataset]) -> None:
    """Dropped captions are of a subset there and of the objective here."""
    # The rate of every subset; without subsets that of the training file.
    levels = [subset.levels for one in datasets for subset in one.subsets] or [one.levels for one in datasets]
    given = [
        _first(one, lambda keys: keys.number("caption_dropout_rate"))
        or Sourced(0.0, "caption_dropout_rate is not set, which is 0 there")
        for one in levels
    ]
    if len({one.value for one in given}) == 1:
        draft.set("objective.caption_dropout", given[0].value, given[0].origin)
        if given[0].value == 0:
            draft.notes.append(
                f"{given[0].origin}: without dropped captions the model has no unconditional input of its own for "
                "guidance; objective.caption_dropout: 0.1 is usual."
            )
    elif given:
        rates = ", ".join(f"{one.value:g}" for one in given[:8])
        draft.left.append(
            Left("caption_dropout_rate", rates, "subsets disagree, and objective.caption_dropout is one number")
        )


def _batch(draft: Draft, datasets: list[_Dataset], training: Keys | None) -> meaning.GlobalBatch:
    # Of several batch sizes the first; a recipe has one.
    given = [
        _first(one.levels, lambda keys: keys.whole("batch_size") or keys.whole("train_batch_size")) for one in datasets
    ]
    sizes = [one for one in given if one is not None]
    micro = sizes[0] if sizes else Sourced(1, "train_batch_size is not set, which is 1 there")
    for other in [one for one in sizes if one.value != micro.value]:
        draft.left.append(Left(other.origin, "", "a recipe has one training.micro_batch, that of the first dataset"))
    accumulation = training.whole("gradient_accumulation_steps") if training else None
    size = meaning.GlobalBatch(micro, accumulation or Sourced(1, "no accumulation"))
    if sizes or training:
        meaning.batch(draft, size)
    return size
