"""Tables of prompts and images out of Midjourney and Niji: exports of its Discord channels, and sets made of them.

The prompt becomes a caption (`prompts`), and what its parameters say becomes tags, by which anime can be chosen. Most
of what the bot posts is a grid of four images; a model trained on grids draws grids, so they are told apart first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from terminus.config.base import Config
from terminus.data.caption import Caption
from terminus.data.record import Candidate, SourcePart
from terminus.data.sources import prompts, tables
from terminus.data.sources.columns import FACTS, BadRow, ColumnRow, Columns, column_checksum, metadata
from terminus.data.sources.prompts import ParsedPrompt

Role = Literal[
    "id", "url", "image", "prompt", "parameters", "caption", "upscaled", "version", "width", "height", "similarity",
    "unsafe", "nsfw", "watermark", "aesthetic", "md5", "sha256", "licence", "tags",
]  # fmt: skip
"""What a column can be for."""

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **FACTS,
        "url": ("url", "image_url", "url_png", "link"),
        "image": ("image", "jpg", "bytes"),
        "prompt": ("prompt", "original_text", "content", "text", "caption"),
        "parameters": ("arguments", "args", "parameters"),
        "caption": ("gpt_caption", "cogvlm_caption", "recaption"),
        "upscaled": ("upscaled", "is_upscaled"),
        "version": ("version",),
    }
)
"""The names that each role goes by, the best first."""

DRAWN = ("anime", "manga", "chibi", "cel shading", "cel shaded", "hand drawn", "3d render", "illustration")
"""Words by which the prompts of Midjourney's general model ask for what Niji draws by itself."""

GRID_PIXELS = 2_500_000
"""Since version 5 one image has about 1 megapixel before it is enlarged, and a grid about 4."""

_GRID_NAME = re.compile(r"[/_]grid_\d", re.IGNORECASE)
_SINGLE_NAME = re.compile(r"//cdn\.midjourney\.com/[^?#]*/\d_\d[^/?#]*\.(?:png|webp|jpe?g)", re.IGNORECASE)
_DISCORD_FILE = re.compile(r"//(?:cdn\.discordapp\.com|media\.discordapp\.net)/", re.IGNORECASE)
_VERSION = re.compile(r"(niji)?\s*-?\s*v?\s*(\d+(?:\.\d+)?)?", re.IGNORECASE)
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


class MidjourneySource(Config):
    """Midjourney or Niji prompts with their images, in Parquet, CSV or JSON Lines tables."""

    kind: Literal["midjourney"]
    """Tables of prompts and images."""
    name: str
    """What the rows of this source are called in the store; keep it when the tables move."""
    path: str
    """A table, or the folder of tables (also partitioned, `version=5.2/...`): a path, s3:// or gs://."""
    columns: dict[Role, str] = Field(default_factory=dict)
    """Which column is what, where it is not called as usual: {prompt: clean_prompts, id: message_id}."""
    only: Literal["upscaled", "not_grids", "any"] = "not_grids"
    """upscaled: what is known to be one image; not_grids: all but what seems to be a grid; any: believe the table."""
    tags: tuple[str, ...] = DRAWN
    """Words that become tags where a caption has them, for `filters` to choose by; parameters always do ("niji")."""

    def count(self) -> int:
        """About how many rows there are; a `UserError` if the tables have no prompts or no images."""
        return tables.estimate(self.path, self._columns())

    def candidates(self, seed: int) -> Iterator[Candidate]:
        """One per row, files in the order of their names; grids, unreadable tables and rows with the reason."""
        return tables.candidates(self.name, self.path, self._columns(), self._candidate)

    def parts(self) -> Iterator[SourcePart]:
        """The tables. One that did not change since its rows were judged need not be read again."""
        return tables.parts(self.name, self.path, self._columns(), self._candidate)

    def _columns(self) -> Columns:
        chosen = {role: name for role, name in self.columns.items()}
        return Columns(NAMES, chosen, (("url", "image"), ("prompt",)))

    def _candidate(self, row: ColumnRow) -> Candidate:
        data, url = row.image()
        prompt = _prompt(row)
        if self.only != "any":
            _refuse_grids(prompt, row, url, known=self.only == "upscaled")
        # The prompt first, then captions that others wrote; a prompt that stands for several is none.
        captions = row.captions("caption")
        if prompt.caption and not prompt.alternatives:
            captions = (Caption(prompt.caption, "prompt"), *captions)
        elif prompt.alternatives and not captions:
            raise BadRow("prompt stands for several", "it holds {this, that}, and which made the image is unknown")
        # Tags: from the parameters, from words of the captions, and those of the table.
        facts = metadata(row)
        words = prompts.mentions("\n".join(caption.text for caption in captions), self.tags)
        tags = tuple(dict.fromkeys((*prompt.tags, *words, *facts.tags)))
        return Candidate(
            self.name,
            row.text("id") or row.id,
            captions,
            data=data,
            url=url,
            checksum=column_checksum(row),
            metadata=replace(facts, tags=tags),
            licence=row.licence(),
        )


def _prompt(row: ColumnRow) -> ParsedPrompt:
    """The prompt that the columns of prompt, parameters and version make together."""
    prompt = prompts.parse_prompt(" ".join(row.texts("prompt")))
    more = prompts.parse_prompt(" ".join(row.texts("parameters")))
    parameters = dict(prompt.parameters) | dict(more.parameters)
    # The column counts only where the prompt itself names no version.
    version = _VERSION.fullmatch(row.text("version") or "")
    if version and version[0] and not {"niji", "version"} & parameters.keys():
        parameters["niji" if version[1] else "version"] = version[2] or ""
    return replace(prompt, parameters=tuple(sorted(parameters.items())))


def _refuse_grids(prompt: ParsedPrompt, row: ColumnRow, url: str | None, known: bool) -> None:
    """Raises `BadRow` for a grid, a preview, or (with `known`) what may be either."""
    shows, evidence = image_content(prompt, row, url)
    if shows == "unfinished":
        raise BadRow("image is not finished", evidence)
    if shows == "four":
        raise BadRow("grid of four images", evidence)
    if shows is None and known:
        raise BadRow("not known to be one image", evidence)


def image_content(prompt: ParsedPrompt, row: ColumnRow, url: str | None) -> tuple[prompts.Shows | None, str]:
    """The content of the image (one, a grid, ...), with the evidence. The first that says something
    decides: a column, the bot's message, the file's name, its size (from version 5 on), and last that what lies on
    Discord is most often a grid."""
    upscaled = _upscaled(row)
    if upscaled is not None:
        return "one" if upscaled else "four", f"column {row.columns['upscaled']} says {upscaled}"
    if prompt.shows is not None:
        return prompt.shows, "the message says so"
    if url and _GRID_NAME.search(url):
        return "four", "the file is called a grid"
    if url and _SINGLE_NAME.search(url):
        return "one", "the file is named as one of four"
    if (size := row.size()) and _version(prompt) >= 5:
        shape = f"{size.width}x{size.height}, version {_version(prompt):g}"
        return "four" if size.width * size.height > GRID_PIXELS else "one", shape
    if url and _DISCORD_FILE.search(url):
        return "four", "a file on Discord that nothing calls upscaled"
    return None, "neither columns, message, file name nor size tell"


def _upscaled(row: ColumnRow) -> bool | None:
    """The column that says whether it is one image that was chosen and enlarged; None where it says nothing."""
    value = row.values.get("upscaled")
    return None if value is None else _TRUTH.get(str(value).strip().casefold())


def _version(prompt: ParsedPrompt) -> float:
    """The model's version; 0 where it is not said."""
    parameters = dict(prompt.parameters)
    number = re.match(r"\d+(?:\.\d+)?", parameters.get("niji") or parameters.get("version") or "")
    return float(number[0]) if number else 0.0
