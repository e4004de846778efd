"""Resuming, adding, replacing and weighing captions; what training then reads; kills and edits in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from terminus.data.caption import Caption
from terminus.data.captioning import run, table
from terminus.data.captioning.merge import merge_captions
from terminus.data.captioning.run import write_captions
from terminus.data.captioning.settings import Captioner
from terminus.data.captioning.table import Answers, generated
from terminus.data.curate import curate
from terminus.data.encode import encode_latents
from terminus.data.settings import DataConfig
from terminus.data.store import CAPTIONS, Store
from terminus.data.waiting import waiting_cuts
from terminus.errors import UserError
from terminus.model.vae import VAE

from ..conftest import noise, random_vae, save
from .conftest import Server, ask, completion, texts

Make = Callable[..., Captioner]


def latent_texts(data: DataConfig) -> dict[str, list[tuple[str, str, float]]]:
    columns = ["key", "source_id", "captions", "caption_origins", "caption_weights"]
    return {
        row["source_id"]: list(zip(row["caption_origins"], row["captions"], row["caption_weights"], strict=True))
        for row in Store(data.store).latents.required().scan(columns).to_pylist()
    }


def encode_all(data: DataConfig, vae: VAE) -> None:
    store = Store(data.store)
    encode_latents(store, waiting_cuts(store, data.transform.spec, vae.id), vae, lambda _: None)


def test_nothing_is_asked_twice(prepared: DataConfig, captioner: Make, server: Server):
    first = ask(prepared, captioner())
    assert (first.images, first.before, first.answered, first.merged) == (12, 0, 12, 12)
    whole = texts(prepared)
    again = ask(prepared, captioner())
    assert (again.before, again.answered, again.merged, len(server.requests)) == (12, 0, 0, 12)
    assert texts(prepared) == whole
    for index, captions in enumerate(whole.values()):
        assert [entry[0] for entry in captions] == ["sidecar", "see"]
        assert captions[0] == ("sidecar", f"own {index}", 1.0)


def test_only_named_sources_are_asked_about(prepared: DataConfig, captioner: Make, server: Server):
    name = prepared.sources[0].name
    elsewhere = ask(prepared, captioner(sources=("elsewhere",)))
    assert (elsewhere.images, elsewhere.answered, len(server.requests)) == (0, 0, 0)
    assert ask(prepared, captioner(sources=(name, "elsewhere"))).answered == 12
    with pytest.raises(ValueError, match="names elsewhere"):
        DataConfig.model_validate(prepared.model_dump() | {"captioner": captioner(sources=("elsewhere",)).model_dump()})


def test_pieces_give_what_one_run_gives(prepared: DataConfig, captioner: Make, server: Server):
    assert ask(prepared, captioner(), limit=5).answered == 5
    assert [len(captions) for captions in texts(prepared).values()] == [2] * 5 + [1] * 7
    assert ask(prepared, captioner(), limit=0).answered == 0
    assert ask(prepared, captioner()).answered == 7
    asked = Counter(json.dumps(request) for request in server.requests)
    assert len(asked) == 12
    assert set(asked.values()) == {1}


def test_only_new_images_are_asked_about(prepared: DataConfig, captioner: Make, server: Server, tmp_path: Path):
    ask(prepared, captioner())
    save(tmp_path / "images" / "new.png", Image.fromarray(noise(77, 90, 90)), "own new")
    curate(prepared, Store(prepared.store), lambda _: None)
    result = ask(prepared, captioner())
    assert (result.images, result.before, result.answered) == (13, 12, 1)
    assert [origin for origin, *_ in texts(prepared)["new.png"]] == ["sidecar", "see"]


def test_training_reads_them_with_every_vae(prepared: DataConfig, captioner: Make):
    encode_all(prepared, random_vae(0))
    ask(prepared, captioner(weight=3.0))
    assert latent_texts(prepared) == texts(prepared)
    encode_all(prepared, random_vae(1))
    ask(prepared, captioner(weight=2.0))
    view = Store(prepared.store).latents.required()
    assert view.count == 24
    weights = view.scan(["caption_weights"]).column("caption_weights").to_pylist()
    assert weights == [[1.0, 2.0]] * 24


def test_rows_keep_their_place_and_their_moments(prepared: DataConfig, captioner: Make):
    encode_all(prepared, random_vae(0))
    columns = ["key", "image_key", "posterior"]
    store = Store(prepared.store)
    before = store.latents.required().scan(columns), store.images.required().scan(["key", "data"])
    ask(prepared, captioner())
    assert (store.latents.required().scan(columns), store.images.required().scan(["key", "data"])) == before


def test_another_name_adds_and_the_same_name_replaces(prepared: DataConfig, captioner: Make, server: Server):
    ask(prepared, captioner())
    server.behave = lambda number, body: (200, completion(f"by {body['messages'][0]['content'][1]['text']}"))
    ask(prepared, captioner(name="other", prompt="one", weight=2.0))
    assert [entry[0] for entry in texts(prepared)["03.png"]] == ["sidecar", "see", "other"]
    ask(prepared, captioner(name="other", prompt="two"), limit=6)
    now = texts(prepared)
    assert now["03.png"][2] == ("other", "by two", 1.0)
    assert now["09.png"][2] == ("other", "by one", 2.0), "until it is answered, what was there stays"
    back = ask(prepared, captioner(name="other", prompt="one", weight=2.0))
    assert (back.answered, texts(prepared)["03.png"][2]) == (0, ("other", "by one", 2.0))


def test_a_useless_answer_replaces_nothing(prepared: DataConfig, captioner: Make, server: Server):
    ask(prepared, captioner())
    before = texts(prepared)
    server.behave = lambda number, body: (200, completion("I'm sorry, I can't."))
    assert dict(ask(prepared, captioner(prompt="again")).refused) == {"refused": 12}
    assert texts(prepared) == before


def test_weights_change_without_asking(prepared: DataConfig, captioner: Make, server: Server):
    ask(prepared, captioner(weight=0.1))
    ask(prepared, captioner(weight=4.0, own_weight=0.0))
    assert [entry[2] for entry in texts(prepared)["00.png"]] == [0.0, 4.0]
    ask(prepared, captioner(weight=0.0, own_weight=1.0))
    assert [entry[2] for entry in texts(prepared)["00.png"]] == [1.0, 0.0]
    assert len(server.requests) == 12


def test_provenance_is_complete(prepared: DataConfig, captioner: Make):
    ask(prepared, captioner(prompt="What is it?", temperature=0.5), limit=1)
    (row,) = Answers(Store(prepared.store)).table.required().scan(CAPTIONS.names).to_pylist()
    assert json.loads(row["settings"]) == {
        "kind": "endpoint", "model": "see-1", "prompt": "What is it?", "max_tokens": 160, "temperature": 0.5,
        "max_side": 1024, "image": "crop", "seed": 0,
    }  # fmt: skip
    assert (row["origin"], row["model"], row["source"], row["source_id"]) == ("see", "see-1-fp8", "folder", "00.png")
    assert (row["prompt_tokens"], row["completion_tokens"], row["reason"], row["weight"]) == (100, 10, None, 1.0)
    assert abs(time.time() - row["created"].timestamp()) < 60


def test_moving_the_server_asks_nothing_again(captioner: Make):
    here, there = captioner(), captioner(model={"url": "http://elsewhere/v1", "concurrency": 99}, weight=7.0)
    assert here.request(0) == there.request(0) == here.request(1)
    others = [captioner(prompt="x"), captioner(temperature=1.0), captioner(model={"model": "see-2"})]
    assert len({one.request(0) for one in [here, *others]}) == 4
    assert others[1].request(0) != others[1].request(1), "drawn answers depend on the seed"


def test_a_name_that_is_taken_by_the_sources(prepared: DataConfig, captioner: Make, server: Server):
    with pytest.raises(UserError, match="own captions are called 'sidecar'"):
        ask(prepared, captioner(name="sidecar"))
    assert server.requests == []


def test_nothing_is_prepared(tmp_path: Path, config: Callable[..., DataConfig], captioner: Make):
    with pytest.raises(UserError, match="terminus prepare"):
        ask(config(tmp_path), captioner())
    assert not (tmp_path / "store").exists()


def test_a_trial_writes_nothing(prepared: DataConfig, captioner: Make, server: Server):
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(prepared.store).rglob("*")}

    before, said = files(), StringIO()
    result = write_captions(prepared, captioner(prompt="Known: {captions}"), Console(file=said, width=400), trial=True)
    assert (result.answered, len(server.requests), files()) == (3, 3, before)
    assert "Known: own 0" in said.getvalue()
    assert "12 images to caption: about 1.2 k tokens in and 120 out" in said.getvalue()


def test_an_edited_sidecar_keeps_generated_captions(
    prepared: DataConfig, captioner: Make, tmp_path: Path, server: Server
):
    ask(prepared, captioner(own_weight=0.5))
    edited = (Caption("edited", "sidecar"), Caption("stale", "see"))
    store = Store(prepared.store)
    keys = dict(zip(*(store.images.required().scan(["source_id", "key"]).columns), strict=True))
    key = next(str(value) for name, value in keys.items() if str(name) == "04.png")
    captions = generated(store, [key]).beside(key, edited)
    assert [(one.origin, one.weight) for one in captions] == [("sidecar", 0.5), ("see", 1.0)]
    assert captions[1].text == texts(prepared)["04.png"][1][1]
    (tmp_path / "images" / "04.txt").write_text("edited anew")
    curate(prepared, store, lambda _: None)
    merge_captions(store)  # what curation does not carry over itself comes back here
    assert [entry[:2] for entry in texts(prepared)["04.png"]] == [("sidecar", "edited anew"), ("see", captions[1].text)]
    assert len(server.requests) == 12


def test_a_kill_between_the_tables_is_mended(
    prepared: DataConfig, captioner: Make, monkeypatch: pytest.MonkeyPatch, server: Server
):
    encode_all(prepared, random_vae(0))
    real = run.merge_captions

    def die(store: Store) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(type(store.latents), "revise", _dying(store))
            return real(store)

    monkeypatch.setattr(run, "merge_captions", die)
    with pytest.raises(KeyboardInterrupt):
        ask(prepared, captioner())
    assert texts(prepared) != latent_texts(prepared)
    monkeypatch.setattr(run, "merge_captions", real)
    assert ask(prepared, captioner()).answered == 0
    assert texts(prepared) == latent_texts(prepared)


def _dying(store: Store) -> Callable[..., None]:
    revise = type(store.latents).revise

    def until_latents(self: Any, changes: Any, on: str) -> None:
        if on == "image_key":
            raise KeyboardInterrupt
        revise(self, changes, on)

    return until_latents


SCRIPT = """
import sys
from terminus.data.captioning import run
from terminus.data.captioning.settings import Captioner
from terminus.data.settings import DataConfig
run.COMMIT_ROWS = 2
data = DataConfig.model_validate_json(open(sys.argv[1]).read())
run.write_captions(data, Captioner.model_validate_json(open(sys.argv[2]).read()))
"""


def test_killed_and_run_again(prepared: DataConfig, captioner: Make, server: Server, tmp_path: Path):
    (tmp_path / "data.json").write_text(prepared.model_dump_json())
    (tmp_path / "captioner.json").write_text(captioner(model={"concurrency": 2}).model_dump_json())
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data.json"), str(tmp_path / "captioner.json")]
    server.behave = lambda number, body: time.sleep(3600 if number >= 7 else 0)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(server.requests) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    kept = Answers(Store(prepared.store)).table.count()
    assert 4 <= kept <= 7
    server.behave = lambda number, body: None
    before = len(server.requests)
    result = ask(prepared, captioner())
    assert (result.before, result.answered) == (kept, 12 - kept)
    assert len(server.requests) == before + 12 - kept, "what was recorded is not asked again"
    rows = Answers(Store(prepared.store)).table.required().scan(["key"]).column("key").to_pylist()
    assert len(rows) == len(set(rows)) == 12
    assert all(len(captions) == 2 for captions in texts(prepared).values())


def test_many_small_commits_become_one_file(prepared: DataConfig, captioner: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "COMMIT_ROWS", 1)
    monkeypatch.setattr(table, "COMPACT_AFTER", 5)
    ask(prepared, captioner())
    dataset = Answers(Store(prepared.store)).table.required().dataset
    assert len(dataset.get_fragments()) <= 2
    assert len(dataset.versions()) <= 4
    keys = dataset.to_table(columns=["image_key"]).column("image_key").to_pylist()
    assert set(keys) == set(Store(prepared.store).images.required().scan(["key"]).column("key").to_pylist())
