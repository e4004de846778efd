"""Builds the embedded data set in src/terminus/assets/emoji from npm packages of fixed versions.

The data set must be small enough to ship, so each drawing is resized once, here (128 px, WebP); everything
that depends on a recipe (background, caption, order) stays in terminus.data.emoji. The same packages and the
same libwebp give the same bytes.

    pip install resvg-py==0.5.0 && python scripts/build_emoji.py      # needs npm; about a minute
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import resvg_py
from emoji_subjects import subject
from numpy.typing import NDArray
from PIL import Image, features

ASSETS = Path(__file__).parents[1] / "src/terminus/assets/emoji"
SIDE = 128
SOURCE_SIDE = 256
QUALITY = 85
MAX_KEYWORDS = 6
LEAST_BACKGROUND = 0.1
"""The captions name the background, so a drawing that covers more than 90 % of its square is left out."""
HELD_OUT_ONE_IN = 25

IMAGES_3D = "@lobehub/fluent-emoji-3d"
IMAGES_FLAT = "@iconify-json/fluent-emoji-flat"
NAMES = "cldr-annotations-full"
NAMES_DERIVED = "cldr-annotations-derived-full"
GROUPS = "unicode-emoji-json"
VERSIONS = {
    IMAGES_3D: "1.1.0",
    IMAGES_FLAT: "1.2.6",
    NAMES: "48.2.0",
    NAMES_DERIVED: "48.2.0",
    GROUPS: "0.9.0",
}

SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
VARIATION = "\ufe0f"
"""Asks for the coloured form. It does not change what is drawn, and file names are not consistent about it."""
TAG, END_OF_TAGS = range(0xE0020, 0xE007F), chr(0xE007F)

MIT = """MIT License

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

README = """# Embedded drawings

Written by `scripts/build_emoji.py`; do not edit. `docs/dataset.md` explains it.

- `3d.zip`, `flat.zip`: {three} + {flat} drawings, {side}x{side} RGBA WebP (lossy colour, lossless alpha).
- `index.jsonl`: one row per drawing.
- `LICENSE-*`: the images are Microsoft's Fluent Emoji (MIT), packaged by LobeHub and Iconify (MIT);
  names and keywords are Unicode CLDR's (Unicode License v3); groups are from unicode-emoji-json (MIT).

| npm package | version | SHA-256 of its archive |
|---|---|---|
{packages}

Built with Pillow {pillow}, libwebp {webp}, resvg-py {resvg}.

| file | bytes | SHA-256 |
|---|---|---|
{files}
"""

FloatImage = NDArray[np.float64]
"""[height, width, 4] in 0..1, straight or premultiplied as the function says."""
Style = Literal["3d", "flat"]


@dataclass(frozen=True)
class Entry:
    """One row of index.jsonl; the reader is terminus.data.emoji.Drawing."""

    id: str
    style: Style
    name: str
    subject: str
    keywords: list[str]
    group: str
    split: Literal["train", "validation"]


class Unicode:
    """Names, keywords and groups by character sequence (without the variation selector)."""

    def __init__(self, packages: dict[str, Path]) -> None:
        self.annotations: dict[str, dict[str, list[str]]] = {}
        for package, key in ((NAMES, "annotations"), (NAMES_DERIVED, "annotationsDerived")):
            rows = json.loads((packages[package] / key / "en" / "annotations.json").read_text())[key]["annotations"]
            self.annotations |= {text.replace(VARIATION, ""): row for text, row in rows.items()}
        groups = json.loads((packages[GROUPS] / "data-by-emoji.json").read_text())
        self.groups = {text.replace(VARIATION, ""): row["group"] for text, row in groups.items()}

    def entry(self, text: str, style: Style) -> Entry:
        """The index row of one character sequence."""
        row = self.annotations[text]
        name = row["tts"][0]
        keywords = [word for word in row.get("default", []) if word != name][:MAX_KEYWORDS]
        return Entry(
            f"{style}/{slug(name)}",
            style,
            name,
            subject(name),
            keywords,
            self.groups[text],
            split(name),
        )


def main() -> None:
    """Fetches the packages (or takes a folder that holds their `npm pack` archives) and writes the assets."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--archives", type=Path, help="folder with the .tgz archives; fetched with npm if left out")
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        archives = fetch(arguments.archives or Path(scratch))
        packages = {name: unpack(archive, Path(scratch) / str(i)) for i, (name, archive) in enumerate(archives.items())}
        arguments.out.mkdir(parents=True, exist_ok=True)
        entries = build(packages, arguments.out)
        write_texts(arguments.out, archives, packages, entries)


def build(packages: dict[str, Path], out: Path) -> list[Entry]:
    """Writes both archives and the index; returns its rows."""
    unicode = Unicode(packages)
    entries: list[Entry] = []
    sources: tuple[tuple[Style, Iterable[tuple[str, FloatImage]]], ...] = (
        ("3d", renders(packages[IMAGES_3D])),
        ("flat", drawings(packages[IMAGES_FLAT])),
    )
    for style, images in sources:
        rows = sorted(named(unicode, style, images), key=lambda row: row[0].id)
        pack(out / f"{style}.zip", [(f"{entry.id.split('/')[1]}.webp", data) for entry, data in rows])
        entries += [entry for entry, _ in rows]
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in entries]
    (out / "index.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return entries


def named(unicode: Unicode, style: Style, images: Iterable[tuple[str, FloatImage]]) -> Iterator[tuple[Entry, bytes]]:
    """Each image once, as a file with its row.

    Two names for the same pixels would be two truths, and a name can have two files: the first one is kept.
    """
    seen: set[str | bytes] = set()
    for text, image in images:
        digest = hashlib.sha256(image.tobytes()).digest()
        if seen.isdisjoint((text, digest)) and (image[..., 3] < 0.5).mean() >= LEAST_BACKGROUND:
            seen |= {text, digest}
            yield unicode.entry(text, style), encode(shrink(image))


def renders(package: Path) -> Iterator[tuple[str, FloatImage]]:
    """The 3D renders without skin-tone variants, as character sequences and straight RGBA."""
    for path in sorted((package / "assets").glob("*.webp")):
        text = characters(path.stem)
        if SKIN_TONES.isdisjoint(text):
            with Image.open(path) as image:
                yield text, square(np.asarray(image.convert("RGBA")) / 255)


def drawings(package: Path) -> Iterator[tuple[str, FloatImage]]:
    """The flat drawings without skin-tone variants, rendered at SOURCE_SIDE."""
    icons = json.loads((package / "icons.json").read_text())
    chars: dict[str, str] = json.loads((package / "chars.json").read_text())
    for code, name in sorted(chars.items()):
        text = characters(code)
        if not SKIN_TONES.isdisjoint(text):
            continue
        alias = icons["aliases"].get(name, {})
        icon = icons["icons"][alias.get("parent", name)]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SOURCE_SIDE, skip_system_fonts=True)
        image = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")) / 255
        yield text, square(image[:, ::-1] if alias.get("hFlip") else image)


def characters(code: str) -> str:
    """ "1f3f4-e0067_..." or "1f34e-fe0f" -> the text it stands for, without the variation selector."""
    text = "".join(chr(int(part, 16)) for part in re.split("[-_]", code)).replace(VARIATION, "")
    return text + END_OF_TAGS if ord(text[-1]) in TAG else text


def square(image: FloatImage) -> FloatImage:
    """A few images are a little taller than wide: pad both sides with nothing."""
    height, width = image.shape[:2]
    pad = [(side - length) // 2 for side, length in ((max(height, width), height), (max(height, width), width))]
    return np.pad(image, ((pad[0], pad[0]), (pad[1], pad[1]), (0, 0)))


def shrink(image: FloatImage) -> FloatImage:
    """Straight RGBA to SIDE with LANCZOS on premultiplied colour, so hidden colour cannot leak into edges."""
    premultiplied = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1)
    planes = [
        np.asarray(
            Image.fromarray(premultiplied[..., i].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        )
        for i in range(4)
    ]
    small = np.stack(planes, axis=-1).astype(np.float64)
    # Below half a step of 8 bits nothing is visible, and dividing by it would invent colour.
    alpha = np.where(small[..., 3:] < 0.5 / 255, 0, small[..., 3:].clip(0, 1))
    return np.concatenate([bleed(small[..., :3].clip(0, alpha), alpha), alpha], axis=-1)


def bleed(colour: FloatImage, alpha: FloatImage) -> FloatImage:
    """Premultiplied colour to straight colour that goes on smoothly where alpha is 0.

    Lossy WebP stores colour at half resolution in blocks of 16: black behind the edge would darken the edge.
    Coarser and coarser averages, weighted by alpha, fill what the finer ones left empty.
    """
    if len(colour) == 1:
        return colour / np.maximum(alpha, 1e-9)
    coarse = bleed(_halve(colour), _halve(alpha)).repeat(2, axis=0).repeat(2, axis=1)
    return np.where(alpha > 0, colour / np.maximum(alpha, 1e-9), coarse).clip(0, 1)


def _halve(x: FloatImage) -> FloatImage:
    return x.reshape(len(x) // 2, 2, len(x) // 2, 2, -1).mean(axis=(1, 3))


def encode(image: FloatImage) -> bytes:
    """Straight RGBA as WebP with lossless alpha; `exact` keeps the bled colours as they are."""
    file = io.BytesIO()
    opened = Image.fromarray((image * 255).round().astype(np.uint8), "RGBA")
    opened.save(file, "WEBP", quality=QUALITY, alpha_quality=100, method=4, exact=True)
    return file.getvalue()


def pack(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A zip archive without compression and without the time of day."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


def slug(name: str) -> str:
    """ "red apple" -> "red-apple"; signs that tell two names apart are spelt out."""
    for sign, word in (("#", "hash"), ("*", "asterisk"), ("&", "and"), ("’", ""), ("!", "")):
        name = name.replace(sign, word)
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-")


def split(name: str) -> Literal["train", "validation"]:
    """By name, so that a held-out subject is unseen in every style."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0 else "train"


def fetch(folder: Path) -> dict[str, Path]:
    """The package archives by name; those not in the folder are fetched with npm."""
    archives: dict[str, Path] = {}
    for package, version in VERSIONS.items():
        path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
        archives[package] = path
    return archives


def unpack(archive: Path, folder: Path) -> Path:
    """Extracts an npm archive; its content is in the folder `package`."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def write_texts(out: Path, archives: dict[str, Path], packages: dict[str, Path], entries: list[Entry]) -> None:
    """The licences, and the README with the sources and hashes."""
    holders = {
        "fluent-emoji": "Microsoft Corporation.",
        "lobehub": "2023 LobeHub",
        "unicode-emoji-json": "2019 Mu-An Chiou",
    }
    for who, holder in holders.items():
        (out / f"LICENSE-{who}").write_text(MIT.format(holder=holder), encoding="utf-8")
    (out / "LICENSE-unicode-cldr").write_bytes((packages[NAMES] / "LICENSE").read_bytes())
    written = [out / name for name in ("3d.zip", "flat.zip", "index.jsonl")]
    text = README.format(
        three=sum(entry.style == "3d" for entry in entries),
        flat=sum(entry.style == "flat" for entry in entries),
        side=SIDE,
        packages="\n".join(f"| {name} | {VERSIONS[name]} | `{sha256(path)}` |" for name, path in archives.items()),
        pillow=metadata.version("pillow"),
        webp=features.version("webp"),
        resvg=metadata.version("resvg-py"),
        files="\n".join(f"| {path.name} | {path.stat().st_size} | `{sha256(path)}` |" for path in written),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
