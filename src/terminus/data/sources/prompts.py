"""From what somebody typed for Midjourney, or what its bot wrote on Discord, to a caption: a pure function.

    message    = [mention] "**" prompt "**" [" - " job]      job: what the bot did, for whom, how fast
    prompt     = {image URL} parts {parameter}
    parts      = text {"::" [weight] text} ["::" [weight]]   a part weighs 1 unless its weight follows the "::"
    parameter  = ("--" | "—" | "–") name [value]             the name decides what its value looks like

Parts of positive weight, in their order, are the caption. What `--no` and negative weights name is not in the image,
so it is no part of the caption. A text that is no such message is a prompt; a dash that begins no parameter is a dash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
RATIO = r"\d+(?:\.\d+)?\s*[:/x×]\s*\d+(?:\.\d+)?"
_REFERENCE = r"(?:<?https?://[^\s>]+>?|random\b|[0-9a-f]{6,}|\d+)(?:::" + NUMBER + ")?"
_VALUES: Mapping[str, str] = MappingProxyType({
    "flag": "",
    "number": NUMBER,
    "ratio": RATIO,
    "word": r"[\w.-]*\w",
    "references": rf"{_REFERENCE}(?:[\s,]+{_REFERENCE})*",
    "code": r"(?=\w*\d)\w+(?:\s+(?=\w*\d)\w+)*|(?:m|pt)\w{6,}",
    "text": r".+",
})  # fmt: skip
"""What a value of each kind looks like; all but "text" end where this pattern does."""
_VALUE = {kind: re.compile(rf"\s*({pattern})(?![\w:])(?:[.;](?!\S))?") for kind, pattern in _VALUES.items() if pattern}
_NAMES = {
    "ratio": "aspect=ar",
    "number": (
        "version=v niji stylize=s,stylise chaos=c quality=q seed sameseed iw weird=w stop repeat=r cw sw sv ow exp h "
        "hd width=wd height=ht bs fps personalization_weight=pw"
    ),
    "word": "style motion",
    "references": "sref cref oref image=img end",
    "code": "profile=p,personalize",
    "flag": (
        "tile raw draft fast relax=relaxed turbo video loop test testp creative beta hq upbeta uplight upanime public "
        "stealth vibe vibefast newclip nostretch old live"
    ),
    "text": "no",
}  # fmt: skip


def _by_spelling() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for kind, entries in _NAMES.items():
        for entry in entries.split():
            name, *aliases = entry.replace("=", ",").split(",")
            for spelling in (name, *aliases):
                found[spelling] = (name, kind)
    return found


PARAMETERS: Mapping[str, tuple[str, str]] = MappingProxyType(_by_spelling())
"""Each spelling of a parameter's name to the name itself and the kind of its value."""

_TAIL = re.compile(
    r"""\s*-\s+(?:
        (?P<single>Image\s+\#\d\b.* | Upscaled(?:\s+\([^()]*\))?(?:\s+by)?\s+(?:<@|@).*)
      | (?P<grid>(?:Variations?(?:\s+\([^()]*\))?|Remix(?:\s+\([^()]*\))?|Zoom\s+Out|Pan\s+\w+|Make\s+Square)\s+by\s.*
      | (?:<@!?\d+>|@\S+).*)
    )$""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""What the bot adds after a prompt: an image that was chosen and enlarged, or four to choose from."""
_PROGRESS = re.compile(r"\((?:\d?\d%|Waiting to start|Stopped|Paused)\)", re.IGNORECASE)
_URL = re.compile(r"<?https?://[^\s<>]*>?", re.IGNORECASE)
_DISCORD = re.compile(r"<(?:@[!&]?|\#|a?:\w+:)\d+>")
_COMMAND = re.compile(r"^\s*/imagine\b\s*(?:prompt\b\s*:?)?", re.IGNORECASE)
_DASH = re.compile(r"(?:-\s?-|(?<!\S)[—–―]+)\s?(?=([A-Za-z]+))")
_WEIGHT = re.compile(rf"::({NUMBER})?")
_BRACES = re.compile(r"(?<!\\)\{([^{}]*)\}")
_MARKUP = re.compile(r"\\([^A-Za-z0-9\s])|\*\*|__|~~|\|\||`|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)")
_EMPTY = re.compile(r"\s*,(?:\s*[,;])+")


Shows = Literal["one", "four", "unfinished"]
"""One image, a grid of four to choose from, or the bot's work in progress."""


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt, taken apart."""

    caption: str
    """The description, on one line; empty where there is none."""
    negative: tuple[str, ...] = ()
    """What it asks not to be in the image."""
    parameters: tuple[tuple[str, str], ...] = ()
    """Name and value as written, of each the last, sorted: (("aspect", "2:3"), ("niji", "5"))."""
    images: int = 0
    """How many image URLs it begins with: these shaped the image, too."""
    alternatives: bool = False
    """Whether it holds `{this, that}`: it stands for several prompts, and which of them made an image is unknown."""
    shows: Shows | None = None
    """What the bot's message says of the image, if it is one."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The parameters as tags: ("niji", "niji 5", "aspect 2:3"); "midjourney 5.2" without `--niji`."""
        metadata = dict(self.parameters)
        tags: list[str] = []
        if "niji" in metadata:
            tags += ["niji", f"niji {metadata['niji']}".strip()]
        elif metadata.get("version"):
            tags += ["midjourney", f"midjourney {metadata['version']}"]
        for name in ("aspect", "style"):
            if metadata.get(name):
                tags.append(f"{name} {metadata[name].casefold()}")
        tags += [name for name in ("raw", "tile") if name in metadata]
        return tuple(dict.fromkeys(tags))


def parse_prompt(text: str) -> ParsedPrompt:
    """Takes a prompt or a message apart. Never fails: what it does not understand stays in the caption, except that
    two hyphens before an unknown name make it a parameter, because the bot has always added some."""
    # What is not the prompt is taken off: the bot's words, mentions, the command, the parameters.
    prompt, shows = _message(" ".join(text.split()))
    prompt = _COMMAND.sub("", _DISCORD.sub(" ", prompt))
    description, parameters, negative = _parameters(prompt)
    # The image URLs at its beginning; they shaped the image, and are no part of the caption.
    images = len(re.findall(r"<?https?://", description[: _description_start(description)], re.IGNORECASE))
    # Parts by weight: a negative one asks for what is not there, one of 0 says nothing.
    kept: list[str] = []
    for part, weight in _parts(_URL.sub(" ", description)):
        if weight < 0:
            negative.append(part)
        elif weight > 0:
            kept.append(part)
    alternatives = any("," in found.replace("\\,", "") for found in _BRACES.findall(description))
    return ParsedPrompt(
        caption=_joined(kept),
        negative=tuple(plain for part in negative if (plain := _plain(part))),
        parameters=tuple(sorted(parameters.items())),
        images=images,
        alternatives=alternatives,
        shows=shows,
    )


def _joined(parts: list[str]) -> str:
    """The parts of a description as one caption."""
    plain = [_plain(part) for part in parts]
    before = [part.rstrip(",; ") for part in plain[:-1]]
    return ", ".join(part for part in (*before, *plain[-1:]) if part)


def mentions(caption: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `words` that occur in a caption as whole words, whatever their case; a space also meets a hyphen."""
    folded = _folded(caption)
    return tuple(word for word in words if re.search(rf"(?<!\w){re.escape(_folded(word))}(?!\w)", folded))


def _folded(word: str) -> str:
    return re.sub(r"[-_\s]+", " ", word.casefold())


def _message(text: str) -> tuple[str, Shows | None]:
    """The prompt in a message of the bot, and how many images the message shows."""
    # The bot sets the prompt in bold, with nothing but a mention before it.
    start, end = text.find("**"), text.rfind("**")
    bold = 0 <= start < end and not _DISCORD.sub("", text[:start]).strip()
    after = text[end + 2 :] if bold else ""
    if bold and (not after.strip() or after.lstrip().startswith(("-", "("))):
        shown = _TAIL.match(after)
        if shown is None:
            return text[start + 2 : end], None
        return text[start + 2 : end], _shows(shown)
    # Without the asterisks the job begins at some " - "; the earliest that reads as one to the end of the text.
    for place in re.finditer(r"\s-\s", text[-400:]):
        if shown := _TAIL.match(text[-400:], place.start()):
            return text[: len(text) - len(text[-400:]) + place.start()], _shows(shown)
    return text, None


def _shows(tail: re.Match[str]) -> Shows:
    if _PROGRESS.search(tail[0]):
        return "unfinished"
    return "one" if tail["single"] else "four"


def _parameters(prompt: str) -> tuple[str, dict[str, str], list[str]]:
    """The text without parameters, the parameters, and the words behind `--no`."""
    rest: list[str] = []
    parameters: dict[str, str] = {}
    negative: list[str] = []
    place = 0
    for dash in _DASH.finditer(prompt):
        # A dash within the value of the parameter before it, such as the second of `--no a --b`.
        if dash.start() < place:
            continue
        known = _known(dash[1].casefold(), prompt, dash)
        if known is None:
            continue
        name, value, end = known
        rest.append(prompt[place : dash.start()])
        place = end
        if name == "no":
            negative += value.split(",")
        else:
            parameters[name] = re.sub(r"\s+", "", value) if name == "aspect" else " ".join(value.split())
    rest.append(prompt[place:])
    return " ".join(rest), parameters, negative


def _known(word: str, prompt: str, dash: re.Match[str]) -> tuple[str, str, int] | None:
    """Name, value and end of the parameter after a dash; None if none begins there."""
    typed = dash[0].startswith("-")
    name, kind = PARAMETERS.get(word, (word, "number"))
    start = dash.end() + len(word)
    # A free text ends where the next parameter begins whose name is known.
    if kind == "text":
        following = next((other for other in _DASH.finditer(prompt, start) if other[1].casefold() in PARAMETERS), None)
        end = following.start() if following else len(prompt)
        return name, prompt[start:end].strip(), end
    value = _VALUE[kind].match(prompt, start) if kind in _VALUE else None
    if value is not None:
        return name, value[1].rstrip("."), value.end()
    # Only two hyphens make a parameter of a name without its value; a long dash may just be a dash.
    bare = typed or (kind == "flag" and not prompt[start:].strip())
    return (name, "", start) if bare and not prompt[start : start + 1].isalnum() else None


def _description_start(description: str) -> int:
    """The position behind the image URLs at the beginning."""
    place = 0
    for url in _URL.finditer(description):
        if description[place : url.start()].strip(" ,\n\t"):
            break
        place = url.end()
    return place


def _parts(description: str) -> list[tuple[str, float]]:
    """The parts of a prompt with their weights."""
    parts: list[tuple[str, float]] = []
    place = 0
    for mark in _WEIGHT.finditer(description):
        parts.append((description[place : mark.start()], float(mark[1] or 1)))
        place = mark.end()
    parts.append((description[place:], 1.0))
    return parts


def _plain(text: str) -> str:
    """Without markup, on one line."""
    text = _MARKUP.sub(r"\1", _BRACES.sub(r"\1", text))
    text = _EMPTY.sub(",", " ".join(text.split())).replace(" ,", ",")
    return text.strip(" ,;-—–").strip()
