"""Prompts written out by a text model: any server that speaks OpenAI's chat-completions protocol, named by `--expand`.

What comes back is a stranger's text: bounded in bytes and time, and then a prompt like any other. Whatever goes wrong,
the prompt stays as it was given and whoever asked is told so: an image is never lost to a text server.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from terminus.errors import UserError, printable
from terminus.serving.limits import LIMITS

KEY_VARIABLE = "TERMINUS_EXPAND_KEY"
"""The environment variable with the text server's key, where it wants one."""
_SECONDS, _CONNECT_SECONDS = 30.0, 5.0
_MAX_BYTES = 1 << 20
_AT_ONCE = 4
_TOKENS = 400
_INSTRUCTION = (
    "You write prompts for a model that draws images. The user gives a short prompt. Rewrite it as one richer prompt "
    "of at most 60 words: keep every subject, colour, style, text and number that it names, and add composition, "
    "light, materials and surroundings that suit it. Keep words in round brackets such as (word:1.2) as they are, and "
    "use no other brackets. Answer with the prompt alone, on one line, in the language of the user."
)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class TextServer:
    """Where prompts are sent."""

    url: str
    """Up to and with `/v1`."""
    model: str = ""
    """As the server calls it; "" is the first that it lists."""

    @classmethod
    def parse(cls, text: str) -> TextServer:
        """From "URL" or "URL#MODEL"; UserError for what is no such address."""
        address, _, model = text.partition("#")
        if not _is_address(address):
            raise UserError(
                f"--expand {text[:200]}", rule="It is the http address of a text server up to /v1, without a password",
                fix="For example http://127.0.0.1:8000/v1, or with #MODEL behind it",
            )  # fmt: skip
        return cls(address.rstrip("/"), model)


class PromptExpander:
    """One text server, asked for several prompts at once at most."""

    def __init__(self, server: TextServer, key: str = "") -> None:
        self._server, self._model = server, server.model
        self._turns = asyncio.Semaphore(_AT_ONCE)
        # Redirects are not followed: prompts and key go to the address that was named, and nowhere else.
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(_SECONDS, connect=_CONNECT_SECONDS),
            follow_redirects=False,
        )

    async def expand(self, prompt: str) -> str:
        """The prompt written out; UserError, in a sentence for the user, where there is none."""
        try:
            async with self._turns, asyncio.timeout(_SECONDS):
                self._model = self._model or await self._first_model()
                body = {
                    "model": self._model, "max_tokens": _TOKENS, "stream": False,
                    "messages": [{"role": "system", "content": _INSTRUCTION}, {"role": "user", "content": prompt}],
                }  # fmt: skip
                content = await self._exchange("POST", "chat/completions", json.dumps(body).encode())
        except (httpx2.HTTPError, TimeoutError) as error:
            late = isinstance(error, TimeoutError | httpx2.TimeoutException)
            raise UserError("the text server is too slow" if late else "the text server does not answer") from error
        return _prompt_in(content)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    async def _first_model(self) -> str:
        listed = _item(await self._exchange("GET", "models", None), "data")
        name = _item(_first(listed), "id")
        if not isinstance(name, str):
            raise UserError("the text server lists no model")
        return name

    async def _exchange(self, method: str, path: str, content: bytes | None) -> object:
        """The JSON of an answer; UserError for a status or a body that is none."""
        body = bytearray()
        headers = {"Content-Type": "application/json"} if content else {}
        async with self._client.stream(
            method, f"{self._server.url}/{path}", content=content, headers=headers
        ) as answer:
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _MAX_BYTES:
                    raise UserError("the text server's answer does not end")
        if answer.status_code != 200:
            raise UserError(f"the text server answers with status {answer.status_code}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UserError("the text server's answer is no JSON") from error


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return whole and not parts.username and not parts.query


def _prompt_in(content: object) -> str:
    """The text of a chat completion, on one line."""
    choice = _first(_item(content, "choices"))
    said = _item(_item(choice, "message"), "content")
    if not isinstance(said, str) or _item(choice, "finish_reason") in ("length", "content_filter"):
        raise UserError("the text server's answer is not whole")
    prompt = " ".join(_THOUGHT.sub("", printable(said)).split()).strip("\"'“”")
    if not prompt or len(prompt) > LIMITS.prompt:
        raise UserError("the text server's answer is no prompt")
    return prompt


def _item(value: object, name: str) -> object:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


def _first(value: object) -> object:
    return cast("list[object]", value)[0] if isinstance(value, list) and value else None
