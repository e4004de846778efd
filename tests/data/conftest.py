"""Images, folders and settings that the tests of preparation share."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image

from terminus.data.settings import DataConfig
from terminus.data.sources.folder import FolderSource
from terminus.model.architecture import NANO
from terminus.model.vae import VAE, build_vae


def noise(seed: int, height: int, width: int, channels: int = 3) -> UInt8[np.ndarray, "height width channels"]:
    """Coarse random blocks: different enough for hashes, smooth enough for JPEG."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return blocks[rows][:, columns]


def save(path: Path, image: Image.Image, caption: str | None = "a pattern", **options: object) -> Path:
    """An image with its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of eight good images of several shapes, one of them transparent."""
    folder = tmp_path / "images"
    for index in range(7):
        save(folder / f"{index}.jpg", Image.fromarray(noise(index, 80 + 8 * index, 120)), f"pattern {index}")
    save(folder / "see-through.png", Image.fromarray(noise(99, 90, 90, 4)), "glass")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataConfig]:
    """Settings over one folder, with a store beside it."""

    def build(folder: Path, **changes: object) -> DataConfig:
        source = FolderSource(kind="folder", name="folder", path=folder)
        settings: dict[str, object] = {"store": str(tmp_path / "store"), "sources": (source,), "resolution": 64}
        return DataConfig.model_validate(settings | changes)

    return build


@pytest.fixture
def vae() -> VAE:
    """Of the smallest architecture, with random but fixed weights."""
    return random_vae(0)


def random_vae(seed: int) -> VAE:
    torch.manual_seed(seed)
    built = build_vae(NANO)
    built.autoencoder.eval().requires_grad_(False)
    return built


ACCOUNT = ("AKIATERMINUSTESTS", "secret-of-the-tests")


@contextmanager
def object_server(root: Path, account: tuple[str, str] | None = ACCOUNT) -> Iterator[str]:
    """The address of a server on loopback whose buckets are the folders in `root`, by the S3 protocol.

    Requests must be signed by the account; without one, all are served.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = Path(sysconfig.get_path("scripts"), "rclone")
    command = [rclone, "serve", "s3", "--config", os.devnull, "--addr", address, "--dir-cache-time", "1ms"]
    command += ["--auth-key", ",".join(account)] if account else []
    with subprocess.Popen([*command, root], stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(500):
                try:
                    socket.create_connection(("127.0.0.1", int(address.partition(":")[2])), 1).close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield f"http://{address}"
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def _object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("object-store")
    with object_server(root) as endpoint:
        yield root, endpoint


@pytest.fixture
def bucket(_object_store: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bucket `s3://<name of the folder>` whose objects are the files of the folder; the account is set."""
    root, endpoint = _object_store
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCOUNT[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ACCOUNT[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    folder = root / f"bucket-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    return folder
