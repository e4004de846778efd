"""`data.captioner`: what is asked of which vision-language model, and what its captions count for."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from terminus.config.base import Config

MAX_SIDE = 1024
"""Longest side in pixels of the image that a model sees: more costs tokens and tells a caption nothing."""
PLACEHOLDERS = ("{captions}", "{tags}")
"""What a prompt may quote of an image's own description."""

PROMPT = (
    "Write one caption of at most 60 words for this image. Name the subject, the medium or style, the setting, the "
    "colours and the light. Say only what can be seen. Answer with the caption alone."
)


class Endpoint(Config):
    """A server that speaks the chat-completions protocol of OpenAI: vLLM, lmdeploy, llama.cpp, a paid service."""

    kind: Literal["endpoint"]
    """A server that speaks OpenAI's chat-completions protocol."""
    url: str
    """Base address, up to and including `/v1`: `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """Name under which the server serves the model."""
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the API key; the key itself never stands in a recipe."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Images that are asked about at once."""

    @field_validator("url")
    @classmethod
    def _is_base(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http:// or https:// address")
        if "@" in parts.netloc:
            raise ValueError("holds a user or password; name an environment variable in key_env instead")
        if parts.port == 0:  # reading it raises for what is no port
            raise ValueError("has no usable port")
        if parts.query or parts.fragment:
            raise ValueError("has a ? or # part; it is the address up to and including /v1")
        return url.rstrip("/").removesuffix("/chat/completions")


class Local(Config):
    """A transformers image-text-to-text model in this process."""

    kind: Literal["local"]
    """A transformers image-text-to-text model in this process."""
    model: str = Field(min_length=1)
    """Folder or hub id; safetensors only, and no code of the model's own is run."""
    batch: int = Field(default=8, ge=1, le=1024)
    """Images per call of the model."""


Model = Annotated[Endpoint | Local, Field(discriminator="kind")]


class Captioner(Config):
    """One caption per image by one model and prompt. Under another name, another caption beside it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Stored as the origin of each caption. The same name with another prompt or model replaces its captions."""
    model: Model
    """Who is asked."""
    sources: tuple[str, ...] = ()
    """Names of the sources whose images are asked about; none, all."""
    prompt: str = Field(default=PROMPT, min_length=1, max_length=4000)
    """What is asked; `{captions}` and `{tags}` stand for what the image's source says of it."""
    max_tokens: int = Field(default=160, ge=8, le=4096)
    """Length of an answer at most; one that is cut short by it is not used."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 gives the likeliest answer; above it, answers are drawn with `data.seed`."""
    weight: float = Field(default=1.0, ge=0.0)
    """How often its caption is drawn among those of its image, in proportion; 0 keeps it and never draws it."""
    own_weight: float | None = Field(default=None, ge=0.0)
    """Weight that the source's captions get beside its own; null leaves theirs, 0 keeps them and never draws them."""

    @field_validator("prompt")
    @classmethod
    def _knows_its_placeholders(cls, prompt: str) -> str:
        unknown = [name for name in re.findall(r"\{\w*\}", prompt) if name not in PLACEHOLDERS]
        if unknown:
            raise ValueError(f"has the placeholder {unknown[0]}; there are {' and '.join(PLACEHOLDERS)}")
        return prompt

    def settings(self, seed: int, whole: bool = False) -> str:
        """The settings that decide the answers, as canonical JSON; where the server runs and what a caption counts
        for do not.

        `whole`: the model sees all of each image, and not its crop.
        """
        deciding: dict[str, object] = {
            "kind": self.model.kind,
            "model": self.model.model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "max_side": MAX_SIDE,
            "image": "whole" if whole else "crop",
        }
        # Greedy answers follow from the rest.
        if self.temperature:
            deciding["seed"] = seed
        return json.dumps(deciding, sort_keys=True, ensure_ascii=False)

    def request(self, seed: int, whole: bool = False) -> str:
        """Hash of `settings`, 16 hex digits: an image that was answered under it is not asked about again."""
        return hashlib.sha256(self.settings(seed, whole).encode("utf-8", "backslashreplace")).hexdigest()[:16]
