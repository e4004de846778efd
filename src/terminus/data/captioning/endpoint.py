"""Asks a server that speaks OpenAI's chat-completions protocol (POST /v1/chat/completions).

Images travel inside the request as base64, so the server fetches nothing: a server that is given addresses can be
made to read its own network. What it sends back is bounded in bytes and time and is only ever text.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any, cast

import httpx2

from terminus.data.captioning.answer import Answer
from terminus.data.captioning.question import Failure, ImageQuestion
from terminus.data.captioning.settings import Captioner, Endpoint
from terminus.errors import UserError

BACKOFF = 1.0
"""Seconds before the first retry; doubled each time, drawn from its upper half so that threads do not march in step."""
RETRIES = 5
LONGEST_WAIT = 60.0
"""Seconds; also where a server asks for more."""
TIMEOUT = 300.0
"""Seconds until an answer must be complete: servers queue, and a large model on a busy GPU is slow."""
CONNECT_TIMEOUT = 10.0
CHECK_TIMEOUT = 30.0
MAX_BYTES = 1 << 20
"""Of a response."""
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""


SETTING = "data.captioner.model"
"""Where a recipe names the server."""


class EndpointAsking:
    """Connections to one server, driven by an event loop in a thread of its own: cancelled requests end at once."""

    batch = 1

    def __init__(
        self, captioner: Captioner, endpoint: Endpoint, seed: int, where: str = SETTING, first_tokens: int = 0
    ) -> None:
        """`where` is what errors name; `first_tokens` asks for so many likeliest first tokens."""
        self.captioner, self.endpoint, self.seed = captioner, endpoint, seed
        self.where, self.first_tokens = where, first_tokens
        self.at_once = endpoint.concurrency
        self._key = _key(endpoint)
        self._images = ThreadPoolExecutor(max(1, os.cpu_count() or 1), thread_name_prefix="images")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="captions", daemon=True)
        self._thread.start()
        # Redirects are not followed: the key goes to the address that the recipe names, and nowhere else.
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx2.Limits(max_connections=self.at_once, max_keepalive_connections=self.at_once),
            follow_redirects=False,
        )

    def check(self) -> None:
        """UserError if nobody answers at the address, the key is refused, or the model is not among those served.

        Known in a second, before any image is decoded. A server without a list of models is taken at its word.
        """
        url = f"{self.endpoint.url}/models"
        try:
            listing = asyncio.run_coroutine_threadsafe(self._exchange("GET", url, None), self._loop)
            status, body, _ = listing.result(CHECK_TIMEOUT)
        except (httpx2.HTTPError, TimeoutError) as error:
            what = f"no answer from {url} ({_said(error)})"
            raise self._error(what, "Start the server, or correct the url.") from None
        if status in (401, 403):
            raise self._refused(status, body)
        served = _served(body) if status == 200 else []
        if served and self.endpoint.model not in served:
            raise self._error(
                f"the server has no model {self.endpoint.model!r}; it serves {', '.join(served[:10])}",
                f"Set {self.where}.model to one of these.",
            )

    def submit(self, questions: Sequence[ImageQuestion]) -> Future[list[Answer | Failure]]:
        """One request, repeated with growing pauses while that may help."""
        return asyncio.run_coroutine_threadsafe(self._answers(questions), self._loop)

    def close(self) -> None:
        """Ends running requests and pauses at once."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._images.shutdown(cancel_futures=True)

    async def _end(self) -> None:
        # Requests end before the client that they run on.
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _answers(self, questions: Sequence[ImageQuestion]) -> list[Answer | Failure]:
        return [await self._ask(question) for question in questions]

    async def _ask(self, question: ImageQuestion) -> Answer | Failure:
        # Images take the cores, in threads: the loop stays free for other requests.
        body = await self._loop.run_in_executor(self._images, self._request, question)
        failure = Failure("no connection")
        for attempt in range(RETRIES + 1):
            wait = 0.0
            try:
                status, said, headers = await self._exchange("POST", f"{self.endpoint.url}/chat/completions", body)
            except httpx2.HTTPError as error:
                late = isinstance(error, httpx2.TimeoutException)
                failure = Failure("timed out" if late else "no connection", _said(error))
            else:
                # An answer, or what no repetition changes.
                if status == 200:
                    return _answer(said)
                failure = Failure(f"HTTP {status}", self._explanation(said))
                if status in (401, 403):
                    raise self._refused(status, said)
                if 300 <= status < 400 or status in (404, 405):
                    raise self._no_chat(status, said)
                if status not in AGAIN:
                    return failure
                wait = _asked_for(headers)
            if attempt < RETRIES:
                pause = BACKOFF * 2**attempt * random.uniform(0.5, 1.0)
                await asyncio.sleep(min(LONGEST_WAIT, max(wait, pause)))
        return failure

    def _request(self, question: ImageQuestion) -> bytes:
        image = base64.b64encode(question.jpeg()).decode()
        return json.dumps(
            {
                "model": self.endpoint.model,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
                            {"type": "text", "text": question.prompt},
                        ],
                    }
                ],
                "max_tokens": self.captioner.max_tokens,
                "temperature": self.captioner.temperature,
                "seed": self.seed,
                "stream": False,
                **({"logprobs": True, "top_logprobs": self.first_tokens} if self.first_tokens else {}),
            }
        ).encode()

    async def _exchange(self, method: str, url: str, content: bytes | None) -> tuple[int, bytes, httpx2.Headers]:
        """Status, body, headers; httpx2.HTTPError for whatever goes wrong on the way, too much or too slow included."""
        headers = {"Content-Type": "application/json"} if content else {}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._client.stream(method, url, content=content, headers=headers) as response,
            ):
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise httpx2.DecodingError(f"more than {MAX_BYTES} bytes came back")
        except TimeoutError:
            raise httpx2.ReadTimeout(f"not complete after {TIMEOUT:.0f} s") from None
        return response.status_code, bytes(body), response.headers

    def _refused(self, status: int, body: bytes) -> UserError:
        key = self.endpoint.key_env
        return self._error(
            f"the server refuses us (HTTP {status}{self._explained(body)})",
            f"Put a valid key into the environment variable {key}."
            if key
            else f"Set {self.where}.key_env to the environment variable that holds the key.",
        )

    def _no_chat(self, status: int, body: bytes) -> UserError:
        return self._error(
            f"no chat completions here (HTTP {status}{self._explained(body)})",
            f"The url ends in /v1 and the server serves {self.endpoint.model!r} with images; correct one of them.",
        )

    def _explanation(self, body: bytes) -> str:
        """The server's own explanation, in whichever of the usual places; without the key, should it repeat that."""
        content = _parsed(body)
        error = _item(content, "error")
        places = (_item(error, "message"), error, _item(content, "message"), _item(content, "detail"))
        said = next(
            (text for text in places if isinstance(text, str) and text.strip()), body.decode("utf-8", "replace")
        )
        return _clip(said.replace(self._key, "***") if self._key else said)

    def _explained(self, body: bytes) -> str:
        said = self._explanation(body)
        return f": {said}" if said else ""

    def _error(self, what: str, fix: str) -> UserError:
        return UserError(
            what,
            where=f"{self.where}.url ({self.endpoint.url})",
            rule="Captions are asked of a server that speaks OpenAI's chat-completions protocol",
            fix=fix,
        )


def _key(endpoint: Endpoint) -> str:
    if endpoint.key_env is None:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {endpoint.key_env} {'holds no key' if key else 'is not set'}",
            where="data.captioner.model.key_env",
            rule="It names the environment variable that holds the API key",
            fix=f"Run `export {endpoint.key_env}=...` before the command.",
        )
    return key


def _served(body: bytes) -> list[str]:
    """Names of the models in the answer to GET /models."""
    entries = _item(_parsed(body), "data")
    names = [_item(entry, "id") for entry in cast("list[object]", entries)] if isinstance(entries, list) else []
    return [name for name in names if isinstance(name, str)]


def _answer(body: bytes) -> Answer | Failure:
    content = _parsed(body)
    choices = _item(content, "choices")
    first = cast("list[object]", choices)[0] if isinstance(choices, list) and choices else None
    message = _item(first, "message")
    if not isinstance(message, dict):
        return Failure("no chat completion", _clip(body.decode("utf-8", "replace")))
    finish, usage = _item(first, "finish_reason"), _item(content, "usage")
    return Answer(
        text="".join(_texts(_item(message, "content"))),
        cut_short=finish in ("length", "max_tokens"),
        declined=finish == "content_filter" or bool(_item(message, "refusal")),
        model=_clip(str(_item(content, "model") or "")),
        prompt_tokens=_number(_item(usage, "prompt_tokens")),
        completion_tokens=_number(_item(usage, "completion_tokens")),
        first_token=_first_token(_item(first, "logprobs")),
    )


def _first_token(logprobs: object) -> tuple[tuple[str, float], ...]:
    """Tokens and log-probabilities of an answer's first place."""
    places = _item(logprobs, "content")
    first = cast("list[object]", places)[0] if isinstance(places, list) and places else None
    tops = _item(first, "top_logprobs")
    found: list[tuple[str, float]] = []
    for top in cast("list[object]", tops) if isinstance(tops, list) else ():
        token, value = _item(top, "token"), _item(top, "logprob")
        if isinstance(token, str) and isinstance(value, int | float) and not isinstance(value, bool):
            found.append((token, float(value)))
    return tuple(found)


def _texts(content: object) -> Iterator[str]:
    """A message is a text, or a list of parts with texts among them."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            if isinstance(text := _item(part, "text"), str):
                yield text


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _item(value: object, name: str) -> object:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None


def _number(value: object) -> int:
    return min(value, 2**31 - 1) if isinstance(value, int) and value > 0 else 0


def _asked_for(headers: httpx2.Headers) -> float:
    """Seconds that `Retry-After` asks for, as a number or a date; 0 without it."""
    text = headers.get("Retry-After", "")
    try:
        return max(0.0, float(text)) if text.strip().replace(".", "", 1).isdigit() else _until(text)
    except (ValueError, OverflowError):
        return 0.0


def _until(text: str) -> float:
    return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0


def _said(error: Exception) -> str:
    return _clip(str(error)) or type(error).__name__


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"
