"""The wheel, installed where the repository is not: what it holds, and that its commands run from any folder.

It is built by hatchling out of this environment, so nothing is fetched. The new environment holds the wheel alone and
borrows every dependency from this one; this one's link to the sources is no part of what it borrows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version
from PIL import Image

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
SHIPPED = ("nano/model_index.json", "nano/unet/diffusion_pytorch_model.safetensors", "emoji", "clip", "card.md.j2")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", folder, ROOT], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def terminus(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True, timeout=240)
    # A path in a .pth file is searched, but not for further .pth files: no editable installation comes along.
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    library = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (library / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return environment / "bin" / "terminus"


def run(command: Path, *arguments: str, cwd: Path, seconds: int = 240) -> str:
    """Standard output of a command that must succeed, without the variables that could lead to the repository."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=seconds,
        env={**kept, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_package_its_assets_and_the_recipes(wheel: Path):
    """Every file that git keeps of them, and none beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "src", "recipes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("a copy without git: nothing says which files belong to it")
    expected = {
        name.replace("src/terminus/", "terminus/", 1).replace("recipes/", "terminus/assets/recipes/", 1)
        for name in listed.stdout.split()
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == expected
    assert all(any(name.startswith(f"terminus/assets/{one}") for name in inside) for one in SHIPPED)
    pages = {name.rpartition(".")[2] for name in inside if name.startswith("terminus/serving/pages/")}
    assert pages >= {"js", "css", "svg", "html"}, "the server's pages need no node and no build"


def version_of(folder: Path) -> Version:
    """What a build in this folder would call itself."""
    command = [sys.executable, "-m", "hatchling", "metadata", "version"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    return Version(done.stdout.split()[-1])


def git(*arguments: str | Path) -> None:
    """In a repository of its own name, whoever runs the tests."""
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with what decides the version, and nothing else."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitattributes", ".git_archival.txt"):
        shutil.copy(ROOT / name, folder)
    git("init", folder)
    git("-C", folder, "add", ".")
    git("-C", folder, "commit", "-m", "all")
    return folder


def test_the_version_is_the_tag(project: Path):
    assert version_of(project).is_devrelease
    git("-C", project, "tag", "v7.8.9")
    assert version_of(project) == Version("7.8.9")
    git("-C", project, "commit", "--allow-empty", "-m", "more")
    later = version_of(project)
    assert Version("7.8.9") < later < Version("7.8.10")
    assert later.local is not None


def test_a_copy_without_tags_or_without_git_has_a_version(project: Path, tmp_path: Path):
    git("clone", "--depth", "1", "--no-tags", f"file://{project}", tmp_path / "shallow")
    assert version_of(tmp_path / "shallow").base_version == "0.1.0"
    shutil.rmtree(tmp_path / "shallow" / ".git")
    assert version_of(tmp_path / "shallow") == Version("0.1.0.dev0")


def test_an_archive_of_a_tag_knows_it(project: Path, tmp_path: Path):
    """As GitHub makes them; `git archive` writes the tag into .git_archival.txt."""
    git("-C", project, "tag", "v7.8.9")
    git("-C", project, "archive", "--output", tmp_path / "project.tar", "v7.8.9")
    with tarfile.open(tmp_path / "project.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert version_of(tmp_path / "unpacked") == Version("7.8.9")


def test_a_source_distribution_knows_its_version(project: Path, tmp_path: Path):
    git("-C", project, "tag", "v7.8.9")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path / "dist"]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=60)
    with tarfile.open(tmp_path / "dist" / "terminus_xl-7.8.9.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert version_of(tmp_path / "terminus_xl-7.8.9") == Version("7.8.9")


def test_it_says_its_version(wheel: Path, terminus: Path, tmp_path: Path):
    name, version = run(terminus, "--version", cwd=tmp_path).split()
    assert name == "terminus"
    assert Version(version) == Version(wheel.name.split("-")[1])


def test_it_is_the_wheel_that_runs(terminus: Path, tmp_path: Path):
    python = terminus.parent / "python"
    found = run(python, "-c", "import terminus; print(terminus.__file__)", cwd=tmp_path).strip()
    assert Path(found).is_relative_to(terminus.parents[1])


def test_recipes_and_nano_are_found_from_any_folder(terminus: Path, tmp_path: Path):
    assert "run.dir = runs/nano" in run(terminus, "config", "show", "nano", cwd=tmp_path)
    run(terminus, "sample", "nano", "--prompt", "a red apple", "--steps", "2", "--out", "out", cwd=tmp_path)
    (drawn,) = (tmp_path / "out").glob("*.png")
    with Image.open(drawn) as image:
        assert image.size == (64, 64)
        assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]


@pytest.mark.timeout(1500)
def test_the_demo_runs_from_any_folder(terminus: Path, tmp_path: Path):
    run(terminus, "demo", "--out", "demo", cwd=tmp_path, seconds=1400)
    made = ("README.md", "samples.png", "metrics.json", "log.jsonl", "model/model_index.json", "data/report.html")
    assert [name for name in made if not (tmp_path / "demo" / name).is_file()] == []
