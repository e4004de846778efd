"""MCP with the SDK's own client, over HTTP and over standard input and output."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters, stdio_client

from tests.serving.conftest import STEPS, Server
from tests.serving.test_same_image import PROMPT, TEXT


def images(result: Any) -> list[bytes]:
    return [base64.b64decode(part.data) for part in result.content if part.type == "image"]


def told(result: Any) -> Any:
    return json.loads(next(part.text for part in result.content if part.type == "text"))


async def use(client: Client, expected: bytes) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert names == {"generate_image", "edit_image", "describe_image", "list_models"}
    models = told(await client.call_tool("list_models", {}))
    assert models[0]["id"] == "nano"
    drawn = await client.call_tool("generate_image", {"prompt": PROMPT, "seed": 7, "steps": STEPS})
    assert images(drawn) == [expected]
    key = told(drawn)[0]["id"]
    said = told(await client.call_tool("describe_image", {"image": key}))
    assert (said["prompt"], said["seed"]) == (PROMPT, 7)
    said = told(await client.call_tool("describe_image", {"image": base64.b64encode(expected).decode()}))
    assert said["source"] == "terminus"
    edited = await client.call_tool(
        "edit_image", {"prompt": "a cat", "image": key, "strength": 0.5, "seed": 1, "steps": STEPS}
    )
    assert len(images(edited)) == 1
    wrong = await client.call_tool("generate_image", {"prompt": "a (dog:99)", "steps": STEPS})
    assert wrong.is_error
    assert "Weights" in wrong.content[0].text


def test_http(server: Server, sampled: Callable[..., bytes]):
    async def run() -> None:
        async with Client(f"{server.address}/mcp") as client:
            await use(client, sampled(*TEXT))

    asyncio.run(run())


def test_stdio(tmp_path: Path, sampled: Callable[..., bytes]):
    async def run() -> None:
        started = StdioServerParameters(
            command=sys.executable,
            args=["-m", "terminus", "serve", "nano", "--stdio", "--threads", "1", "--folder", str(tmp_path / "images")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        async with Client(stdio_client(started)) as client:
            await use(client, sampled(*TEXT))

    asyncio.run(run())
