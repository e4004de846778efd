"""The server under load: many clients at once, against the same images drawn one after the other.

    python benchmarks/serve_load.py --clients 200 --seconds 60 --out benchmarks/results/serve-load.json

Each client asks for an image, waits for it, and asks again; an answer of 429 or 503 is waited out as it says. Counted:
images a second, seconds from asking to having (p50, p95), refusals, what was lost, and memory of the server's processes
at the start and at the end. Beside it, in a process of its own and before the server starts, `Terminus.text2img`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from terminus import runtime

SEQUENTIAL = """
import sys, time
from terminus import Terminus
import torch
threads, steps, seconds = (int(word) for word in sys.argv[1:])
torch.set_num_threads(threads)
model = Terminus.load("nano")
model.text2img("a dog", steps=2)
began, count = time.monotonic(), 0
while time.monotonic() - began < seconds:
    model.text2img(f"a flat drawing of a dog {count}", seed=count, steps=steps)
    count += 1
print(count / (time.monotonic() - began))
"""


@dataclass
class Seen:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    """Jobs that were taken and not drawn, or answers that are none."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Result:
    """The figures."""

    cores: int
    clients: int
    seconds: float
    steps: int
    threads: int
    images: int
    images_per_second: float
    sequential_images_per_second: float
    gain: float
    p50_seconds: float
    p95_seconds: float
    refused: int
    lost: int
    memory_start_mb: float
    memory_end_mb: float


def sequential(threads: int, steps: int, seconds: int) -> float:
    """Images a second, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", SEQUENTIAL, str(threads), str(steps), str(seconds)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def client(address: str, number: int, steps: int, until: float, seen: Seen) -> None:
    """One client, to the end of the time; an image that was asked for before it is still waited for."""
    with httpx2.Client(base_url=address, timeout=600, trust_env=False) as http:
        turn = 0
        while time.monotonic() < until:
            request = {
                "model": "nano", "prompt": f"a flat drawing of a dog {number}", "seed": turn, "steps": steps,
            }  # fmt: skip
            began = time.monotonic()
            answer = http.post("/api/v1/jobs?wait=true", json=request)
            if answer.status_code in (429, 503):
                with seen.lock:
                    seen.refused += 1
                pause = min(float(answer.headers["retry-after"]), max(0.0, until - time.monotonic()))
                time.sleep(pause)
                continue
            job: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
            with seen.lock:
                if job.get("state") == "finished" and len(job["images"]) == 1:
                    seen.seconds.append(time.monotonic() - began)
                else:
                    seen.lost.append(answer.text[:200])
            turn += 1


def memory_mb(session: int) -> float:
    """Resident memory of all processes of a session."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int((stat.parent / "statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def load(arguments: argparse.Namespace, alone: float) -> Result:
    """Starts a server, loads it, stops it."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "terminus", "serve", "nano", "--port", "0", "--folder", f"{folder}/images",
             "--threads", str(arguments.threads)],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)},
        )  # fmt: skip
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip().rstrip("/")
            with httpx2.Client(base_url=address, trust_env=False) as http:
                while http.get("/health").status_code != 200:
                    time.sleep(0.2)
                http.post("/api/v1/jobs?wait=true", json={"model": "nano", "steps": 2}, timeout=60)
            before, seen, began = memory_mb(server.pid), Seen(), time.monotonic()
            until = began + arguments.seconds
            threads = [
                threading.Thread(target=client, args=(address, number, arguments.steps, until, seen))
                for number in range(arguments.clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - began
            after = memory_mb(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(90)
    times = sorted(seen.seconds)
    rate = len(times) / took
    return Result(
        os.cpu_count() or 1, arguments.clients, took, arguments.steps,
        arguments.threads, len(times), rate, alone, rate / alone, statistics.median(times),
        times[min(len(times) - 1, int(0.95 * len(times)))], seen.refused, len(seen.lost), before, after,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    alone = sequential(arguments.threads, arguments.steps, min(20, arguments.seconds))
    record = {"date": datetime.now(UTC).date().isoformat(), **asdict(load(arguments, alone))}
    result = json.dumps({**record, "environment": asdict(runtime.environment())}, indent=2)
    print(result)
    if arguments.out is not None:
        arguments.out.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
