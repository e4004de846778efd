"""Publishing to a stand-in of the Hub, by huggingface_hub's own client: listed, sent, broken off, continued."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from rich.console import Console

from terminus.card.command import card
from terminus.errors import UserError
from terminus.publishing.civitai import write_bundle
from terminus.publishing.command import publish
from terminus.publishing.contents import Terms
from terminus.sampling.infotext import parse_infotext
from terminus.serving.security import Tokens
from tests.documents.test_blocks import parse
from tests.publishing.hub import UploadHub, upload_hub

# The client's own way of sending bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def carded(run: Path) -> Path:
    card(run)
    return run


def test_without_really_files_are_listed_and_nothing_is_sent(carded: Path, hub: UploadHub):
    console = quiet()
    found = publish(carded, "owner/name", console=console)
    listed = said(console)
    assert "nothing was sent; add --really" in listed
    assert hub.tokens == set()
    paths = [file.path for file in found.files]
    expected = {
        *(
            "model_index.json",
            "unet/diffusion_pytorch_model.safetensors",
            "Terminus-nano-vpred.safetensors",
            "README.md",
        ),
        *("data-summary.md", "metrics.json", "samples.png", "samples/0.png", ".eval_results/terminus.yaml"),
    }
    assert expected <= set(paths)
    assert paths[-1] == "README.md"
    assert not {"recipe.yaml", "log.jsonl", "facts.json"} & set(paths), "they hold paths of a machine"
    size = (carded / "model" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert re.search(rf"^ *{size:,}  unet/diffusion_pytorch_model.safetensors$", listed, re.MULTILINE)
    assert f"{sum(file.size for file in found.files):,}  bytes in {len(paths)} files, for owner/name (public)" in listed


def test_what_is_sent_is_what_was_listed_and_the_card_is_the_repositorys(carded: Path, hub: UploadHub):
    found = publish(carded, "owner/name", really=True, console=quiet())
    assert hub.repositories.keys() == {"owner/name"}
    assert "Bearer hf_test" in hub.tokens
    assert hub.files.keys() == {file.path for file in found.files}
    weights = carded / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    assert hub.files["unet/diffusion_pytorch_model.safetensors"] == weights.read_bytes()
    text = hub.files["README.md"].decode()
    assert 'from_pretrained("owner/name"' in text
    assert "terminus sample owner/name --prompt" in text
    assert str(carded) not in text
    matter = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert all(one["output"]["url"] in hub.files for one in matter["widget"])
    assert len(hub.commits) == 1


def test_an_upload_that_breaks_off_is_continued(carded: Path, hub: UploadHub):
    hub.fail_uploads_after = 2
    with pytest.raises(UserError, match=r"upload broke off.*The same command continues"):
        publish(carded, "owner/name", really=True, console=quiet())
    assert (len(hub.sent), hub.files, hub.commits) == (2, {}, []), "no card without its weights"
    hub.fail_uploads_after = None
    publish(carded, "owner/name", really=True, console=quiet())
    assert len(hub.sent) == len(set(hub.sent)), "nothing was sent twice"
    assert "README.md" in hub.files


def test_terms_collection_and_lineage(carded: Path, hub: UploadHub, edit: Callable[..., None]):
    edit(carded / "recipe.yaml", {"run.licence": "openrail++", "model.start": "stabilityai/sdxl"})
    edit(carded / "facts.json", {"begun_from": "hub"})
    card(carded)
    terms = Terms(private=True, gated=True, collection="owner/some-1")
    publish(carded, "owner/name", really=True, terms=terms, console=quiet())
    assert hub.repositories["owner/name"]["visibility"] == "private"
    assert hub.settings == [{"gated": "manual"}]
    assert hub.collected[0]["item"] == {"id": "owner/name", "type": "model"}
    matter = yaml.safe_load(hub.files["README.md"].decode().split("\n---\n")[0].removeprefix("---\n"))
    assert (matter["base_model"], matter["base_model_relation"]) == ("stabilityai/sdxl", "finetune")
    assert "exploiting, harming" in matter["extra_gated_prompt"]
    assert "extra_gated" not in (carded / "README.md").read_text(encoding="utf-8")


def test_a_space_serves_the_model(carded: Path, hub: UploadHub, tmp_path: Path):
    console = quiet()
    listed = publish(carded, "owner/name", terms=Terms(space=True), console=console)
    assert [file.path for file in listed.space] == ["Dockerfile", "README.md", "start.sh"]
    assert f"{listed.space[2].size:>14,}  spaces/owner/name/start.sh" in said(console)
    assert hub.tokens == set()
    publish(carded, "owner/name", really=True, terms=Terms(private=True, space=True), console=quiet())
    made = hub.repositories["spaces/owner/name"]
    assert (made["sdk"], made["visibility"]) == ("docker", "private")
    readme, dockerfile, start = (
        hub.files[f"spaces/owner/name/{name}"].decode() for name in ("README.md", "Dockerfile", "start.sh")
    )
    matter = yaml.safe_load(readme.split("\n---\n")[0].removeprefix("---\n"))
    assert (matter["sdk"], matter["app_port"], matter["models"]) == ("docker", 7860, ["owner/name"])
    assert re.search(r"^RUN pip install .*terminus-xl", dockerfile, re.MULTILINE)
    assert 'CMD ["sh", "start.sh"]' in dockerfile
    assert len(hub.commits) == 2

    # Started as in the Space: nobody is let in without a secret; with one, the command line is one that we take.
    script, tokens = tmp_path / "start.sh", tmp_path / "tokens"
    script.write_text(start, encoding="utf-8")
    fake = tmp_path / "bin" / "terminus"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{fake.parent}:/usr/bin:/bin"}
    refused = subprocess.run(["sh", script], env=path, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, "Set the secret TERMINUS_TOKENS" in refused.stderr) == (1, True)
    secret = "anna 0123456789abcdef0123"
    known = path | {"TERMINUS_TOKENS": secret}
    asked = subprocess.run(["sh", script], env=known, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Tokens.read(tokens).users == {"0123456789abcdef0123": "anna"}
    assert tokens.stat().st_mode & 0o077 == 0
    arguments = asked.stdout.split()
    assert arguments[:2] == ["serve", "owner/name"]
    parse(arguments)


def test_what_cannot_be_published(carded: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="'name' is no repository"):
        publish(carded, "name")
    text = (carded / "README.md").read_text(encoding="utf-8")
    (carded / "README.md").write_text(text.replace("0.3123", "0.1"), encoding="utf-8")
    with pytest.raises(UserError, match="problems in this card"):
        publish(carded, "owner/name", really=True, console=quiet())
    (carded / "README.md").unlink()
    with pytest.raises(UserError, match="no card to check"):
        publish(carded, "owner/name", console=quiet())
    assert hub.tokens == set()


def test_a_bundle_for_civitai(carded: Path, tmp_path: Path, edit: Callable[..., None]):
    edit(carded / "recipe.yaml", {"run.licence": "openrail++"})
    target = write_bundle(carded, tmp_path / "bundle")
    assert {path.name for path in target.iterdir()} == {"Terminus-nano-vpred.safetensors", "images", "about.md"}
    with Image.open(target / "images" / "0.png") as image:
        found = parse_infotext(image.info["parameters"])
    assert found is not None
    assert (found.settings["Steps"], found.settings["Sampler"], found.settings["Size"]) == ("2", "DPM++ 2M", "32x32")
    assert found.prompt
    about = (target / "about.md").read_text(encoding="utf-8")
    assert "Base model: SDXL 1.0" in about
    assert "exploiting, harming" in about
