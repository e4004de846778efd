"""A table like LAION's, prepared from end to end: rows a second, peak memory, and whether the books balance.

    python benchmarks/laion_like.py --rows 10000 --out benchmarks/results

A server in another process on loopback answers as the web does: most links work, some are gone, slow, broken,
reserved, or lead into private networks. The images are the embedded drawings, re-encoded at several sizes and
made different file by file through a JPEG comment; one in twenty repeats another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from io import BytesIO, StringIO
from ipaddress import IPv4Address, IPv6Address
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

DISTINCT = 1000
"""Encodings that are kept by the server; each row's comment makes it another file."""
SIZES = (256, 320, 400, 512)
CHUNK = 10_000
"""Rows of the table that are written at a time."""


def kind(index: int) -> str:
    """What the link of a row leads to."""
    place = index * 7919 % 100
    bounds = (("gone", 8), ("broken", 10), ("page", 12), ("noai", 15), ("busy", 17), ("small", 25), ("marked", 35))
    private = "private" if place == 99 else "silent" if place == 98 else "good"
    return next((name for name, bound in bounds if place < bound), private)


def encodings() -> list[bytes]:
    """Embedded drawings as JPEG files of several sizes."""
    from terminus.data.record import parse_color
    from terminus.data.sources.embedded import EmbeddedSource
    from terminus.decode import Decoded, Limits, decode

    files: list[bytes] = []
    for number, candidate in enumerate(EmbeddedSource(kind="embedded", limit=DISTINCT, backgrounds=1).candidates(0)):
        assert candidate.data is not None
        decoded = decode(candidate.data, Limits(1 << 24, 1 << 24))
        assert isinstance(decoded, Decoded)
        side = SIZES[number % len(SIZES)]
        image = Image.fromarray(decoded.on(candidate.background or parse_color("#ffffff"))).resize((side, side))
        file = BytesIO()
        image.save(file, "JPEG", quality=80 + number % 15)
        files.append(file.getvalue())
    return files


def body(files: list[bytes], index: int) -> bytes:
    """The file of a row; one in twenty is that of the row before."""
    unique = index - 1 if index % 20 == 19 else index
    file, comment = files[unique % len(files)], str(unique).encode()
    return file[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + file[2:]


def serve(port: Connection) -> None:
    """Answers for ever; says its port first."""
    files = encodings()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                index = int(head.split(b" ", 2)[1].rpartition(b"/")[2].partition(b".")[0])
                found, status, extra, data = kind(index), "200 OK", b"", b""
                if found == "gone":
                    status = "404 Not Found"
                elif found == "busy":
                    status = "503 Service Unavailable"
                elif found == "page":
                    data = b"<html>this picture has moved</html>"
                else:
                    data = body(files, index)
                    data = data[: len(data) // 2] if found == "broken" else data
                    extra = b"X-Robots-Tag: noai\r\n" if found == "noai" else b""
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n".encode() + extra + b"\r\n" + data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def table(path: Path, rows: int, port: int) -> None:
    """Parquet with LAION's columns."""
    schema = pa.schema([
        ("URL", pa.string()), ("TEXT", pa.string()), ("WIDTH", pa.int32()), ("HEIGHT", pa.int32()),
        ("pwatermark", pa.float32()), ("punsafe", pa.float32()), ("AESTHETIC_SCORE", pa.float32()),
        ("similarity", pa.float32()),
    ])  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            chunk: list[dict[str, object]] = []
            for index in range(start, min(rows, start + CHUNK)):
                found, host = kind(index), "10.0.0.1" if kind(index) == "private" else "127.0.0.1"
                chunk.append({
                    "URL": f"http://{host}:{port}/{index}.jpg",
                    "TEXT": None if found == "silent" else f"image {index}",
                    "WIDTH": 100 if found == "small" else 300, "HEIGHT": 300, "punsafe": index % 97 / 1000,
                    "pwatermark": 0.9 if found == "marked" else index % 50 / 100, "similarity": 0.2 + index % 30 / 100,
                    "AESTHETIC_SCORE": 4 + index % 40 / 10,
                })  # fmt: skip
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def allowed(address: IPv4Address | IPv6Address) -> bool:
    """The server of this benchmark, and nothing private beside it."""
    return address.is_loopback


def measure(rows: int, near: bool, folder: Path) -> dict[str, object]:
    """Two preparations of one table: the first does all, the second nothing."""
    from terminus.data.prepare import prepare
    from terminus.data.settings import DataConfig

    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    table(folder / "laion.parquet", rows, ours.recv())
    data = DataConfig.model_validate({
        "store": str(folder / "store"), "resolution": 128,
        "sources": ({"kind": "laion", "name": "laion", "path": str(folder / "laion.parquet")},),
        "filters": {"max_watermark": 0.8, "min_edge": 128, "duplicates": "near" if near else "exact"},
        "download": {"per_host": 64, "retries": 0},
    })  # fmt: skip
    seconds: list[float] = []
    memory = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    for _ in range(2):
        began = time.perf_counter()
        report = prepare(data, None, Console(file=StringIO()), allowed)
        seconds.append(time.perf_counter() - began)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        assert report.candidates == rows == report.kept + sum(report.dropped.values())
    server.kill()
    return {
        "rows": rows, "duplicates": data.filters.duplicates, "seconds": round(seconds[0], 1),
        "rows_per_second": round(rows / seconds[0], 1), "repeated_seconds": round(seconds[1], 1),
        "repeated_rows_per_second": round(rows / seconds[1], 1),
        "peak_rss_mib": {"before": round(memory[0]), "first": round(memory[1]), "repeated": round(memory[2])},
        "kept": report.kept, "dropped": report.dropped, "balanced": True,
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} cores", "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    """Prints the result, and writes it into `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--near", action="store_true", help="look for near duplicates too")
    parser.add_argument("--out", type=Path, help="folder for the result")
    parser.add_argument("--keep", type=Path, help="prepare into this folder and leave it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(asked.rows, asked.near, folder)
    print(json.dumps(result, indent=2))
    if asked.out:
        name = f"laion-like-{asked.rows}{'-near' if asked.near else ''}-cpu.json"
        (asked.out / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
