"""Decode, LANCZOS, store: photographs of 12 megapixels become squares of 1024 pixels, by three ways in turn.

Ours is what preparation runs (`terminus.decode`, `terminus.data.geometry`); Pillow is the reference, in speed and in
pixels; img2dataset's own `Resizer` runs in an environment of its own, named by its python:

    python -m venv other && other/bin/pip install img2dataset
    python benchmarks/resize.py --img2dataset other/bin/python --out benchmarks/results/resize-cpu.json

Each is a process of its own, gets the same bytes, works on one thread, writes a JPEG of quality 95 with halved
colour to the same disk, and is measured by its own CPU seconds, which other work on the machine disturbs least. What is
reported is the median of all images and rounds. Each contender works through all images once before, uncounted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from statistics import median

SIDE = 1024
HEIGHT, WIDTH = 3000, 4000

Work = Callable[[bytes, Path], None]


def serve(way: str) -> None:
    """One contender's process: each line names a file to read and one to write, and is answered with seconds."""
    work = {"ours": ours, "pillow": pillow}.get(way) or img2dataset(way)
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        print(json.dumps(clocked(work, Path(source), Path(target))), flush=True)


def clocked(work: Work, source: Path, target: Path) -> tuple[float, float]:
    """CPU and wall seconds; reading the file is not counted."""
    data = source.read_bytes()
    cpu, wall = time.process_time(), time.perf_counter()
    work(data, target)
    return time.process_time() - cpu, time.perf_counter() - wall


def photograph(seed: int):
    """Something like one: energy falls with frequency as in photographs, and there are hard edges."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH) ** 1.1
    layers = []
    for _ in range(3):
        spectrum = np.fft.rfft2(generator.standard_normal((HEIGHT, WIDTH))) * fall
        layer = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        layers.append(layer / layer.std() * 48 + 128)
    image = np.stack(layers, axis=-1)
    image[..., 1:] = 0.7 * image[..., :1] + 0.3 * image[..., 1:]
    for _ in range(40):
        top, left = generator.integers(0, HEIGHT - 200), generator.integers(0, WIDTH - 200)
        image[top : top + generator.integers(8, 200), left : left + generator.integers(8, 200)] = generator.integers(
            0, 256, 3
        )
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def ours_pixels(data: bytes):
    """The training pixels, by the functions that preparation uses."""
    from terminus import decode
    from terminus.data import geometry

    decoded = decode.decode(data, decode.Limits(1 << 28, 1 << 26))
    assert isinstance(decoded, decode.Decoded)
    way = geometry.plan(decoded.size, geometry.Transform(SIDE), geometry.CropPosition(0, 0))
    assert way is not None
    return geometry.crop_and_resize(decoded.on((255, 255, 255)), way)


def pillow_pixels(data: bytes):
    """The same geometry by Pillow's decoder and LANCZOS."""
    from PIL import Image

    image = Image.open(BytesIO(data)).convert("RGB")
    width = round(image.width * SIDE / image.height)
    image = image.resize((width, SIDE), Image.Resampling.LANCZOS)
    left = (width - SIDE) // 2
    return image.crop((left, 0, left + SIDE, SIDE))


def ours(data: bytes, target: Path) -> None:
    import simplejpeg

    target.write_bytes(simplejpeg.encode_jpeg(ours_pixels(data), quality=95, colorsubsampling="420"))


def pillow(data: bytes, target: Path) -> None:
    pillow_pixels(data).save(target, "JPEG", quality=95, subsampling="4:2:0")


def img2dataset(interpolation: str) -> Work:
    """ "area" is its default; its "lanczos" is OpenCV's, which does not average over what it leaves out."""
    from img2dataset.resizer import Resizer

    resizer = Resizer(SIDE, "center_crop", True, downscale_interpolation=interpolation)

    def work(data: bytes, target: Path) -> None:
        stored, _, _, _, _, error = resizer(BytesIO(data))
        assert error is None, error
        target.write_bytes(stored)

    return work


class Contender:
    """A way in a process of its own, so that all are scheduled alike."""

    def __init__(self, python: str, way: str) -> None:
        command = [python, __file__, "--serve", way]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, source: Path, target: Path) -> tuple[float, float]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{source}\t{target}\n")
        stdin.flush()
        cpu, wall = json.loads(stdout.readline())
        return cpu, wall

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def levels(sources: list[Path], other: dict[str, Path]) -> dict[str, float]:
    """How far from Pillow's pixels: ours before they are stored (the largest and the share that differs at all), and
    the mean of every way as it is stored."""
    import numpy as np
    from PIL import Image

    first = sources[0].read_bytes()
    gaps = []
    for source in sources:
        data = source.read_bytes()
        gaps.append(np.abs(ours_pixels(data).astype(int) - np.asarray(pillow_pixels(data)).astype(int)))
    result = {
        "ours, largest": float(max(gap.max() for gap in gaps)),
        "ours, share that differs": float(np.mean([(gap > 0).mean() for gap in gaps])),
    }
    reference = np.asarray(pillow_pixels(first)).astype(int)
    for name, path in other.items():
        stored = np.asarray(Image.open(path)).astype(int)
        result[f"{name}, mean as stored"] = float(np.abs(stored - reference).mean())
    return result


def measure(count: int, rounds: int, python: str | None) -> dict[str, object]:
    """CPU and wall seconds per image of every way, taking turns image by image."""
    from PIL import Image

    ways = {"ours": Contender(sys.executable, "ours"), "pillow": Contender(sys.executable, "pillow")}
    if python:
        ways |= {f"img2dataset {name}": Contender(python, name) for name in ("area", "lanczos")}
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder) / f"{number}.jpg" for number in range(count)]
        for number, source in enumerate(sources):
            Image.fromarray(photograph(number)).save(source, "JPEG", quality=90, subsampling="4:2:0")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        stored = {name: Path(folder) / f"stored {name}.jpg" for name in ways}
        for turn in range(1 + rounds):
            for source in reversed(sources):  # so that what lies there at the end is the first image
                for name, way in ways.items():
                    taken = way(source, stored[name])
                    if turn:
                        seconds[name].append(taken)
        gaps = levels(sources, stored)
        megabytes = sum(source.stat().st_size for source in sources) / count / 1e6
    for way in ways.values():
        way.close()
    cpu = {name: median(one for one, _ in taken) for name, taken in seconds.items()}
    return {
        "images": count,
        "rounds": rounds,
        "megabytes_each": round(megabytes, 2),
        "cpu_seconds": {name: round(value, 4) for name, value in cpu.items()},
        "wall_seconds": {name: round(median(wall for _, wall in taken), 4) for name, taken in seconds.items()},
        "per_second_and_core": {name: round(1 / value, 2) for name, value in cpu.items()},
        "ours_is_faster_than": {name: round(value / cpu["ours"], 2) for name, value in cpu.items() if name != "ours"},
        "levels_from_pillow": {name: round(value, 4) for name, value in gaps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset", help="python of an environment that has it; without, it is left out")
    parser.add_argument("--count", type=int, default=6, help="images")
    parser.add_argument("--rounds", type=int, default=5, help="times that each image is done by each way")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    from terminus import runtime

    result = measure(arguments.count, arguments.rounds, arguments.img2dataset)
    about = runtime.environment()
    result |= {"date": datetime.now(UTC).date().isoformat(), "hardware": about.hardware, "packages": about.packages}
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
