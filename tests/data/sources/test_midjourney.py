"""Prompts and messages as people and the bot wrote them, and tables of them."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terminus.data.caption import Caption
from terminus.data.sources.midjourney import MidjourneySource
from terminus.data.sources.prompts import PARAMETERS, mentions, parse_prompt
from terminus.errors import UserError

CAPTIONS = [
    # parameters
    ("a cat --ar 2:3 --niji 5", "a cat", "niji, niji 5, aspect 2:3"),
    ("a cat --v 5.2", "a cat", "midjourney, midjourney 5.2"),
    ("a cat --v 5.2.", "a cat", "midjourney, midjourney 5.2"),
    ("a cat --version 6.0 --style raw", "a cat", "midjourney, midjourney 6.0, style raw"),
    ("a cat --V 6 --AR 16:9", "a cat", "midjourney, midjourney 6, aspect 16:9"),
    ("a cat --aspect 16:9 --tile", "a cat", "aspect 16:9, tile"),
    ("girl --niji --style expressive", "girl", "niji, style expressive"),
    ("room --ar16:9 --v5 --q.5", "room", "midjourney, midjourney 5, aspect 16:9"),
    ("room --ar 16 : 9", "room", "aspect 16:9"),
    ("a cat --s 750 --c 10 --q 2 --seed 99 --iw 1.5 --stop 80 --weird 250 --repeat 4", "a cat", ""),
    ("a cat --stylize 250 --chaos 5 --no-such --raw", "a cat", "raw"),
    ("a cat --ar 2:3, highly detailed", "a cat, highly detailed", "aspect 2:3"),
    ("A man--ar 2:3", "A man", "aspect 2:3"),
    ("a cat --p", "a cat", ""),
    ("a cat --p abc123 m7236528367 --ar 1:1", "a cat", "aspect 1:1"),
    ("a cat --profile", "a cat", ""),
    ("a cat --cref https://a.test/c.png https://b.test/d.jpg --cw 20", "a cat", ""),
    ("a cat --sref 12345 678 random --sw 50", "a cat", ""),
    ("a cat --sref https://s.mj.run/xYz::2 https://s.mj.run/aBc::1 --v 6", "a cat", "midjourney, midjourney 6"),
    ("a cat --fast --hd --upbeta --test --creative", "a cat", ""),
    ("--ar 2:3", "", "aspect 2:3"),
    # long dashes
    ("a cat —ar 16:9 —v 5", "a cat", "midjourney, midjourney 5, aspect 16:9"),
    ("a cat –ar 16:9 –niji 6", "a cat", "niji, niji 6, aspect 16:9"),
    ("a cat - -ar 16:9", "a cat", "aspect 16:9"),
    ("well-known — a tale —stop the car, 1990–2000", "well-known — a tale —stop the car, 1990–2000", ""),
    ("state-of-the-art sci-fi - cinematic", "state-of-the-art sci-fi - cinematic", ""),
    # images and weights
    ("https://s.mj.run/abc <https://x.test/a.png> a cat --iw 2", "a cat", ""),
    ("cat::2 dog::-1", "cat", ""),
    ("hot:: dog", "hot, dog", ""),
    ("space::2 ship::1.5 red::-.5 --v 4", "space, ship", "midjourney, midjourney 4"),
    ("sky:: 2 birds", "sky, 2 birds", ""),
    ("at 10:30, std: fine", "at 10:30, std: fine", ""),
    ("a {cat} on a mat", "a cat on a mat", ""),
    # Discord
    ("**a girl, anime --ar 2:3 --niji 5** - Image #1 <@1234>", "a girl, anime", "niji, niji 5, aspect 2:3"),
    ("<@77> **a cat** - <@!99> (fast)", "a cat", ""),
    ("**<https://s.mj.run/Z> portrait of **bold** her --s 5** - <@9> (relaxed)", "portrait of bold her", ""),
    ("**a cat** - Upscaled (Subtle) by <@12> (fast)", "a cat", ""),
    ("a cat - Upscaled by @some body (fast)", "a cat", ""),
    ("a cat --niji 6 - Image #3 @Bob", "a cat", "niji, niji 6"),
    ("/imagine prompt: a dog --v 4", "a dog", "midjourney, midjourney 4"),
    ("snake\\_case \\*star\\* *emphasis* __under__ `code` ||hidden||", "snake_case *star* emphasis under code hidden",
     ""),
    ("a cat <:blob:123456> <a:wave:99> <#42>", "a cat", ""),
    ("red car - image by nobody", "red car - image by nobody", ""),
    # text
    ("1girl, , solo,, 東京 🎨 --niji 6", "1girl, solo, 東京 🎨", "niji, niji 6"),
    ("  two\n\nlines ", "two lines", ""),
    ("", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "caption", "tags"), CAPTIONS)
def test_prompts_become_captions_and_tags(text: str, caption: str, tags: str):
    prompt = parse_prompt(text)
    assert prompt.caption == caption
    assert ", ".join(prompt.tags) == tags


@pytest.mark.parametrize(
    ("text", "negative"),
    [
        ("tulips --no red, yellow --ar 3:2", ("red", "yellow")),
        ("tulips --ar 3:2 --no red", ("red",)),
        ("tulips --no", ()),
        ("tulips —no people", ("people",)),
        ("tulips::2 people::-0.5", ("people",)),
        ("tulips --no a well-known, — thing", ("a well-known", "thing")),
    ],
)
def test_what_is_not_in_the_image_is_not_in_the_caption(text: str, negative: tuple[str, ...]):
    assert (parse_prompt(text).caption, parse_prompt(text).negative) == ("tulips", negative)


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("**x** - Image #1 <@1>", "one"), ("**x** - Upscaled by <@1> (fast)", "one"),
        ("**x** - Upscaled (Beta) by <@1> (relaxed)", "one"), ("x - Image #4 @user", "one"),
        ("**x** - <@1> (fast)", "four"), ("**x** - Variations by <@1>", "four"),
        ("**x** - Variations (Strong) by <@1> (fast, stealth)", "four"), ("**x** - Remix by <@1>", "four"),
        ("**x** - Zoom Out by <@1>", "four"), ("**x** - Pan Left by <@1>", "four"), ("x - @user (turbo)", "four"),
        ("**x** - <@1> (31%) (fast)", "unfinished"), ("**x** - <@1> (Waiting to start)", "unfinished"),
        ("**x** - Upscaled by <@1> (0%)", "unfinished"), ("**x** - <@1> (100%) (fast)", "four"),
        ("x", None), ("**x**", None), ("x - upscaled photograph", None),
    ],
)  # fmt: skip
def test_messages_say_how_many_images_they_show(text: str, shows: str | None):
    assert (parse_prompt(text).shows, parse_prompt(text).caption) == (shows, "x" if "photograph" not in text else text)


def test_alternatives_are_seen():
    assert parse_prompt("a {red, green} bird").alternatives
    assert not parse_prompt("a {red\\, green} bird").alternatives
    assert not parse_prompt("a \\{red, green\\} bird").alternatives
    assert parse_prompt("a \\{red, green\\} bird").caption == "a {red, green} bird"
    assert parse_prompt("https://a.test/x.png https://b.test/y.png a cat https://c.test/z.png").images == 2


PIECES = [
    "--",
    "—",
    "::",
    "**",
    " ",
    "- ",
    "{",
    "}",
    ",",
    "\\",
    "<@1>",
    "https://x.test/",
    "cat",
    "5",
    ".",
    "*",
    "Image #1",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES + sorted(PARAMETERS)) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_gives_a_caption_on_one_line_without_parameters(text: str):
    prompt = parse_prompt(text)
    assert prompt.caption == " ".join(prompt.caption.split())
    assert "https://" not in prompt.caption
    assert not any(f"--{name} 5" in prompt.caption for name in ("ar", "v", "niji"))
    assert parse_prompt(text) == prompt


@pytest.mark.parametrize(
    "piece",
    [
        "-", "--", "--no ", "--zz ", "—a ", "*", "**", "{", "{,", "::", ":: 1", "\\", "_ ", ",", " ,", "<", "<@1",
        "https://", " - ", " - @", "--sref 1234567 ", "--p a1 ", "1234567x ", "--ar 1", "--cref ",
    ],
)  # fmt: skip
def test_long_texts_take_linear_time(piece: str):
    begin = time.process_time()
    parse_prompt(piece * (16384 // len(piece)))
    parse_prompt("--sref " + piece * (16384 // len(piece)))
    assert time.process_time() - begin < 2.0


def test_words_are_found_whole():
    words = ("anime", "cel shading", "3d render")
    assert mentions("Anime girl, cel-shading", words) == ("anime", "cel shading")
    assert mentions("animeted 13d renders", words) == ()
    assert mentions("a 3D\nRender", words) == ("3d render",)


def source(path: Path, **settings: object) -> MidjourneySource:
    return MidjourneySource.model_validate({"kind": "midjourney", "name": "mj", "path": str(path), **settings})


def message(
    content: str, url: str = "https://x.test/a.png", width: int | None = None, **more: object
) -> dict[str, object]:
    return {"content": content, "url": url, "width": width, "height": width, **more}


def found(tmp_path: Path, *rows: dict[str, object], **settings: object) -> list[str]:
    """Of each row its caption, or the reason why there is none."""
    pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "x.parquet")
    candidates = source(tmp_path, **settings).candidates(0)
    return [one.problem.reason if one.problem else one.captions[0].text for one in candidates]


DISCORD = "https://cdn.discordapp.com/attachments/1/2/user_a_cat_0b1c.png"
WEB = "https://cdn.midjourney.com/0b1c-22"


def test_grids_are_told_from_images(tmp_path: Path):
    rows = [
        message("**single** - Image #1 <@1>", DISCORD),
        message("**grid** - <@1> (fast)", DISCORD),
        message("**half** - <@1> (31%)", DISCORD),
        message("web --v 6", f"{WEB}/0_3.png"),
        message("web --v 6", f"{WEB}/grid_0.png"),
        message("by size --v 5.2", DISCORD, 1024),
        message("by size --niji 5", DISCORD, 2048),
        message("old --v 4", DISCORD, 1024),
        message("unknown"),
    ]
    grid = "grid of four images"
    single = ["single", grid, "image is not finished", "web", grid, "by size", grid]
    assert found(tmp_path, *rows) == [*single, grid, "unknown"]
    assert found(tmp_path, *rows, only="upscaled") == [*single, grid, "not known to be one image"]
    assert found(tmp_path, *rows, only="any") == [
        "single", "grid", "half", "web", "web", "by size", "by size", "old", "unknown",
    ]  # fmt: skip
    told = [message("**a** - <@1> (fast)", DISCORD, upscaled=True), message("**a** - Image #1 <@1>", upscaled=False)]
    assert found(tmp_path, *told) == ["a", grid]


def test_anime_is_chosen_by_flags_words_and_columns(tmp_path: Path):
    rows = [
        message("a girl --niji 5"), message("a cat, anime style --v 5.2"), message("a photo --v 5.2"),
        message("a photo --no anime"), message("a photo"), message("a photo", arguments="--ar 2:3 --niji 6"),
        message("a photo", version="niji 4"), message("a photo", version="5.2"),
    ]  # fmt: skip
    found(tmp_path, *[{"arguments": None, "version": None, **row} for row in rows])
    assert [one.metadata.tags for one in source(tmp_path).candidates(0)] == [
        ("niji", "niji 5"), ("midjourney", "midjourney 5.2", "anime"), ("midjourney", "midjourney 5.2"), (), (),
        ("niji", "niji 6", "aspect 2:3"), ("niji", "niji 4"), ("midjourney", "midjourney 5.2"),
    ]  # fmt: skip


def test_captions_of_others_stand_beside_the_prompt(tmp_path: Path):
    rows = [
        message("a cat --v 6", gpt_caption="A tabby cat."),
        message("a {red, blue} cat", gpt_caption="A red cat."),
        message("a {red, blue} cat", gpt_caption=None),
        message("--v 6", gpt_caption=None),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    cats = list(source(tmp_path).candidates(0))
    assert cats[0].captions == (Caption("a cat", "prompt"), Caption("A tabby cat.", "gpt_caption"))
    assert cats[1].captions == (Caption("A red cat.", "gpt_caption"),)
    assert cats[2].problem is not None
    assert cats[2].problem.reason == "prompt stands for several"
    assert (cats[3].captions, cats[3].problem) == ((), None)  # curation then says "no caption"


def test_csv_and_json_lines_are_read_alike(tmp_path: Path):
    (tmp_path / "a.csv").write_text('prompt,url\n"a cat, a dog --niji 5",https://x.test/1.png\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "a cat, a dog --niji 5", "url": "https://x.test/1.png"}\n')
    (tmp_path / "c.jsonl").write_text('{"prompt": "half \\ud800", "url": "https://x.test/1.png"}\n')
    first, second, third = source(tmp_path).candidates(0)
    assert (first.source_id, second.source_id) == ("a.csv#0", "b.jsonl#0")
    assert first.captions == second.captions == (Caption("a cat, a dog", "prompt"),)
    assert third.problem is not None
    assert source(tmp_path).count() > 0
    (tmp_path / "a.csv").write_text("words,url\na,b\n")
    with pytest.raises(UserError, match="no column for prompt"):
        source(tmp_path / "a.csv").count()


def test_the_same_candidates_in_an_object_store(bucket: Path):
    (bucket / "mj").mkdir()
    pq.write_table(pa.Table.from_pylist([message("a cat --niji 5")]), bucket / "mj" / "x.parquet")
    remote = MidjourneySource(kind="midjourney", name="mj", path=f"s3://{bucket.name}/mj")
    assert list(remote.candidates(0)) == list(source(bucket / "mj").candidates(0))
