"""The card: every section filled from the run, valid for the hub, proof against what its texts contain."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from terminus.card.check import BLANK, HEADINGS
from terminus.card.command import card
from terminus.card.escape import bibtex, code, line, markdown, public_place
from terminus.errors import UserError


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next."""
    after = text.split(f"\n{heading}\n", 1)[1]
    return re.split(r"\n#{2,4} ", after)[0].strip()


def test_every_section_of_the_template_is_there_in_order_and_filled(run: Path):
    text = card(run).read_text(encoding="utf-8")
    headings = [row for row in text.splitlines() if re.match(r"#{2,4} ", row)]
    assert headings == list(HEADINGS)
    assert BLANK not in text
    card(run, check=True)


def test_the_sections_are_those_of_the_hubs_own_template():
    import huggingface_hub

    template = Path(huggingface_hub.__file__).parent / "templates" / "modelcard_template.md"
    rows = template.read_text(encoding="utf-8").splitlines()
    assert [row.removesuffix(" [optional]") for row in rows if re.match(r"#{2,4} ", row)] == list(HEADINGS)


def test_numbers_are_those_of_the_run(run: Path):
    text = card(run).read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    black = metrics["contrast"]["ztsnr"]["backgrounds"]["black"]["border_luminance"]
    assert f"| black | 0.000 | not measured | {black['mean']:.3f} ± {black['std']:.3f} (n 4, CI" in text
    for expected in (
        "1e-05 to 0.0001, cosine schedule",
        "32 × 1 = 32",
        "0.97 (12,800 images seen, 400 optimizer steps)",
        "**Epochs of source `drawings`:** 0.50",
        "**Epochs of source `photographs`:** 2.25",
        "13,226 for training, 559 held out",
        "form augmented, gamma 5",
        "1 h 12 min in optimizer steps",
        "15.5 images/s median",
        "| all | 0.7123 | 0.3123 |",
        "20 W × 1.2 h = 0.02401 kWh (estimate)",
        "not measured (the grid factor is not stated",
        "torch 2.13.0",
        "bf16 mixed precision",
    ):
        assert expected in text, expected


def test_front_matter_is_what_the_hub_reads(run: Path):
    text = card(run).read_text(encoding="utf-8")
    data = front_matter(text)
    assert ModelCard.load(run / "README.md").data.to_dict() == {**data, **ModelCard(text).data.to_dict()}
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"], data["language"]) == ("diffusers", "text-to-image", ["en"])
    assert {"v-prediction", "zero-terminal-snr", "diffusers:StableDiffusionXLPipeline"} <= set(data["tags"])
    assert "base_model" not in data, "the shipped nano is no hub id"
    assert "co2_eq_emissions" not in data
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    measured = [metric["value"] for result in data["model-index"][0]["results"] for metric in result["metrics"]]
    white = metrics["contrast"]["ztsnr"]["backgrounds"]["white"]["border_luminance"]["mean"]
    assert round(white, 6) in measured
    assert [entry["output"]["url"] for entry in data["widget"]] == [f"samples/{i}.png" for i in range(6)]


def test_a_hub_model_and_a_grid_factor_are_named(run: Path, edit):
    edit(run / "recipe.yaml", {"model.start": "owner/terminus", "run.grid_co2": 400.0})
    edit(run / "facts.json", {"begun_from": "hub"})
    text = card(run).read_text(encoding="utf-8")
    data = front_matter(text)
    assert data["base_model"] == "owner/terminus"
    assert data["co2_eq_emissions"]["emissions"] == round(4321 / 3600 * 20 / 1000 * 400, 3)
    assert data["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert "0.02401 kWh × 400 g/kWh = 9.602 g CO2eq (estimate)" in text


def test_a_bias_probe_is_on_the_card_with_its_prompts(run: Path, edit):
    share = {"count": 8, "n": 32, "share": 0.25, "ci95": [0.132, 0.421]}
    found = {"count": 7, "n": 8, "share": 0.875, "ci95": [0.529, 0.978]}
    answer = {"caption": "a red {}", "groups": {"doctors": share}, "recognised": found}
    axis = {"axis": "colour", "extractor": "some CLIP", "fingerprint": "0", "answers": {"red": answer}}
    assert "Bias, harmful content and likeness" in card(run).read_text(encoding="utf-8")
    edit(
        run / "metrics.json", {"bias": {"groups": {"doctors": ["a doctor", "a surgeon"]}, "images": 32, "axes": [axis]}}
    )
    text = card(run).read_text(encoding="utf-8")
    assert "| colour, by some CLIP | doctors | recognised when asked for |\n|---|---|---|" in text
    assert "| red | 0.250 (8 of 32, CI 0.132 to 0.421) | 0.875 (7 of 8, CI 0.529 to 0.978) |" in text
    assert "32 images of each group of prompts (`doctors`: a doctor, a surgeon)" in text
    assert "Bias: measured for the prompts and answers under Results alone. Harmful content" in text
    card(run, check=True)


def measured(seconds: float, **joules: float) -> dict[str, object]:
    return {"energy": {"joules": joules, "seconds": seconds, "missing": None}}


def test_measured_energy_is_on_the_card_with_its_meters(run: Path, edit):
    edit(run / "facts.json", measured(4400.0, NVML=7.2e6, RAPL=1.8e6))
    edit(run / "recipe.yaml", {"run.grid_co2": 400.0, "run.region": "France"})
    text = card(run).read_text(encoding="utf-8")
    part = section(text, "## Environmental Impact")
    assert "NVML 2 kWh + RAPL 0.5 kWh = 2.5 kWh (measured), 703.1 J per image of training" in part
    assert "2.5 kWh × 400 g/kWh = 1000 g CO2eq (measured energy, stated grid factor)" in part
    assert "**Compute Region:** France" in part
    assert "**Hours used:** 1.222" in part
    assert "NVML counts the boards of the GPUs; RAPL counts the CPU packages" in part
    assert "(estimate)" not in part
    found = front_matter(text)["co2_eq_emissions"]
    assert (found["emissions"], found["geographical_location"]) == (1000.0, "France")
    assert found["source"] == "energy measured by NVML and RAPL x the stated grid factor"
    card(run, check=True)


def test_measured_energy_without_a_grid_factor_has_no_emissions(run: Path, edit):
    edit(run / "facts.json", measured(4400.0, NVML=7.2e6))
    text = card(run).read_text(encoding="utf-8")
    assert "**Energy:** NVML 2 kWh (measured)" in text
    assert "and so are the CPUs." in text
    assert "**Carbon Emitted:** not measured (the grid factor is not stated" in text
    assert "co2_eq_emissions" not in front_matter(text)


def test_a_measurement_of_a_part_of_the_run_is_none(run: Path, edit):
    edit(run / "facts.json", measured(3600.0, RAPL=1e6))
    part = section(card(run).read_text(encoding="utf-8"), "## Environmental Impact")
    assert "an estimate, not a measurement (counters were read in 1 of the 1.2 hours in steps alone" in part
    assert "20 W × 1.2 h = 0.02401 kWh (estimate)" in part
    edit(run / "facts.json", {"energy": {"joules": {}, "seconds": 0.0, "missing": "NVML does not count this GPU"}})
    part = section(card(run).read_text(encoding="utf-8"), "## Environmental Impact")
    assert "not a measurement (NVML does not count this GPU): energy = assumed power" in part


def test_the_reports_counts_are_on_the_card(run: Path, edit, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    report = {
        "candidates": 14000, "kept": 13785, "dropped": {"exact duplicate": 200, "no <caption>": 15},
        "versions": {"images": 7, "latents": 4}, "holdings": {"licences": {"MIT": 13785}},
    }  # fmt: skip
    (store / "report.json").write_text(json.dumps(report), encoding="utf-8")
    edit(run / "recipe.yaml", {"data.store": str(store)})
    data = section(card(run).read_text(encoding="utf-8"), "### Training Data")
    assert "14,000 candidates and kept 13,785" in data
    assert "Dropped, no &lt;caption&gt;: 15" in data
    assert "Licence MIT: 13,785 images" in data
    assert "belong to version 4 of the table" in data
    assert str(tmp_path) not in data


@pytest.mark.parametrize("missing", ["metrics.json", "log.jsonl", "data.json", "model/terminus.json", "samples.png"])
def test_what_is_missing_is_not_measured(run: Path, missing: str):
    (run / missing).unlink()
    text = card(run).read_text(encoding="utf-8")
    card(run, check=True)
    assert "None" not in text
    assert "Undefined" not in text
    if missing == "metrics.json":
        assert section(text, "#### Summary").startswith("Images: not measured.")
        assert "model-index" not in front_matter(text)
    if missing == "log.jsonl":
        assert "not measured weighted" in section(text, "#### Speeds, Sizes, Times")


def test_empty_facts_invent_nothing(run: Path):
    (run / "facts.json").write_text("{}", encoding="utf-8")
    (run / "metrics.json").unlink()
    text = card(run).read_text(encoding="utf-8")
    assert "**Epochs:** not measured (not measured images seen, not measured optimizer steps)" in text
    assert "**Energy:** not measured" in text


@pytest.mark.parametrize(
    "wrong",
    [float("nan"), float("inf"), "12", True, [1], {"a": 1}, None],
    ids=repr,
)
def test_a_number_that_is_none_is_not_measured(run: Path, edit, wrong: object):
    edit(run / "facts.json", {"images_per_second_median": wrong})
    assert "**Speed:** not measured images/s median" in card(run).read_text(encoding="utf-8")


HOSTILE = (
    "---\nlicense: evil\n---\n# Owned <script>alert(1)</script> [click](http://evil.example) ![x](http://evil.example/x)"
    " {{ 7 * 7 }} {% for x in y %} | cell | `code` *b* !!python/object: x\n\n## Uses\n\n"
    "www.evil.example $x$ \x1b[2J\u202e"
)


@pytest.mark.parametrize("key", ["run.name", "run.developer", "data.sources.0.name", "data.store", "model.start"])
def test_text_is_shown_not_obeyed(run: Path, edit, key: str):
    edit(run / "recipe.yaml", {key: HOSTILE})
    text = card(run).read_text(encoding="utf-8")
    card(run, check=True)
    body = text.split("\n---\n", 1)[1]
    assert front_matter(text)["license"] == "apache-2.0"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "49" not in re.findall(r"\b49\b", body)
    outside_code = re.sub(r"^```.*?^```$|(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", body, flags=re.S | re.M)
    assert "<script" not in outside_code
    assert not re.search(r"(?<!\\)\]\(http:", outside_code)
    assert not re.search(r"https?://evil|www\.evil", outside_code)


def test_prompts_are_shown_not_obeyed(run: Path, edit):
    edit(run / "metrics.json", {"samples.0.prompt": 'x"\n```\nimport os; os.system("boom") #' + HOSTILE})
    text = card(run).read_text(encoding="utf-8")
    assert front_matter(text)["widget"][0]["text"].startswith('x" ``` import os')
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    assert [kind for kind, _ in blocks] == ["python", "sh", "bibtex"]
    compile(blocks[0][1], "card", "exec")
    assert blocks[0][1].count("\n") == 15
    assert blocks[1][1].count("\n") == 1


def test_a_megabyte_stays_outside(run: Path, edit):
    edit(run / "recipe.yaml", {"run.name": "x" * 1_000_000})
    assert len(card(run).read_text(encoding="utf-8")) < 60_000


def test_no_path_of_a_machine(run: Path, edit):
    edit(run / "recipe.yaml", {"model.start": "/home/somebody/secret/base", "data.store": "~/data/store"})
    edit(run / "facts.json", {"begun_from": "folder"})
    edit(run / "model" / "terminus.json", {"parents": ["/home/somebody/old", "C:\\Users\\somebody\\older"]})
    text = card(run).read_text(encoding="utf-8")
    assert "somebody" not in text
    assert "secret" not in text
    assert "fine-tuned from `base` (a local folder)" in text


def test_a_licence_that_nobody_stated_is_not_stated(run: Path, edit):
    edit(run / "recipe.yaml", {"run.licence": None})
    edit(run / "model" / "terminus.json", {"licence": None})
    text = card(run).read_text(encoding="utf-8")
    assert "license" not in front_matter(text)
    assert "- **License:** not stated\n" in text
    assert "note" not in text.split("```bibtex")[1].split("```")[0]
    card(run, check=True)


@pytest.mark.parametrize(
    ("parent", "matter"),
    [("openrail++", {"license": "openrail++"}), ("Our-Own", {"license": "other", "license_name": "Our-Own"})],
)
def test_a_licence_is_inherited_from_the_parent(run: Path, edit, parent: str, matter: dict[str, str]):
    edit(run / "recipe.yaml", {"run.licence": None})
    edit(run / "model" / "terminus.json", {"licence": parent})
    text = card(run).read_text(encoding="utf-8")
    assert {key: value for key, value in front_matter(text).items() if key.startswith("license")} == matter
    assert f"- **License:** {parent}, inherited from the model that training began from\n" in text
    card(run, check=True)


def test_an_unknown_licence_is_refused(run: Path, edit):
    edit(run / "recipe.yaml", {"run.licence": "do-what-i-say"})
    with pytest.raises(UserError, match=r"do-what-i-say.*fixed list"):
        card(run)


def test_metrics_of_other_weights_are_refused(run: Path):
    config = run / "model" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("trailing", "leading"), encoding="utf-8")
    with pytest.raises(UserError, match="other weights"):
        card(run)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "no recipe.yaml"),
        (lambda run: (run / "facts.json").unlink(), "not finished"),
        (lambda run: (run / "model" / "model_index.json").unlink(), "not finished"),
        (lambda run: (run / "facts.json").write_text("{"), "not readable JSON"),
        (lambda run: (run / "log.jsonl").write_text("{\n"), r"log\.jsonl:1"),
        (lambda run: (run / "recipe.yaml").write_text("a: [\n"), "recipe.yaml"),
    ],
)
def test_what_is_no_finished_run_is_an_error_of_the_user(run: Path, spoil, message: str):
    spoil(run)
    with pytest.raises(UserError, match=message):
        card(run)


def test_a_part_of_a_model_has_no_card(run: Path, edit):
    edit(run / "recipe.yaml", {"objective": {"kind": "vae"}})
    with pytest.raises(UserError, match="part of a model"):
        card(run)


def tampered(run: Path, before: str, after: str) -> str:
    path = card(run)
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        card(run, check=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("| all | 0.7123 | 0.3123 |", "| all | 0.7123 | 0.1123 |", "missing or changed: | all | 0.7123 | 0.3123 |"),
        ("| all | 0.7123 | 0.3123 |\n", "", "missing or changed"),
        ("license: apache-2.0", "license: mit", "`license` of the front matter is 'mit'"),
        ("## Glossary", "## Dictionary", "the section `## Glossary` is missing"),
        ("Not measured: no interpretability work was done.", "", "the section `## Model Examination` is empty"),
        ("not stated", BLANK, f"{BLANK} occurs 1 times"),
        ("---\nlanguage", "language", "front matter cannot be read (there is none)"),
        ("license: apache-2.0", "license: [", "front matter cannot be read"),
        ("## Glossary\n", "## Glossary\n\nFID is 7.25.\n", "7.25 is not in the run's files"),
        ("## Glossary\n", "## Glossary\n\nSee /home/me/x.\n", "names a path of one machine"),
    ],
)
def test_check_finds(run: Path, before: str, after: str, problem: str):
    assert problem in tampered(run, before, after)


def test_check_lists_everything_at_once(run: Path):
    path = card(run)
    text = path.read_text(encoding="utf-8").replace("0.3123", "0.2123").replace("## Glossary", "## Words")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"5 problems in this card") as caught:
        card(run, check=True)
    assert "0.2123" in str(caught.value)


def test_check_allows_prose(run: Path):
    path = card(run)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("## Uses\n", "## Uses\n\nI made it for my children.\n", 1), encoding="utf-8")
    card(run, check=True)


def test_check_follows_the_run(run: Path, edit):
    card(run)
    edit(run / "facts.json", {"skipped_steps": 3})
    with pytest.raises(UserError, match="Steps left out:\\*\\* 3"):
        card(run, check=True)


def test_check_of_no_card(run: Path):
    with pytest.raises(UserError, match="no card to check"):
        card(run, check=True)


def test_writing_a_card_imports_no_torch(run: Path):
    program = (
        "import sys; from pathlib import Path; from terminus.card.command import card; "
        f"card(Path({str(run)!r})); print([n for n in ('torch', 'diffusers', 'lance', 'daft') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_defaults_in_the_code_are_those_of_the_command_line(run: Path):
    from terminus.sampling.settings import Settings

    code_block = section(card(run).read_text(encoding="utf-8"), "## How to Get Started with the Model")
    usual = Settings()
    assert f"num_inference_steps={usual.steps}," in code_block
    assert f"guidance_scale={usual.guidance}," in code_block


@pytest.mark.slow
def test_the_get_started_code_runs(run: Path, monkeypatch: pytest.MonkeyPatch):
    text = card(run).read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0]
    subprocess.run([sys.executable, "-c", program], cwd=run, check=True, timeout=120)
    assert (run / "image.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a *b* [c](d)", r"a \*b\* \[c\](d)"),
        ("<b> & {{ x }}", "&lt;b&gt; &amp; &#123;&#123; x }}"),
        ("two\nlines\r\n---", "two lines ---"),
        ("http://x", "http&#58;//x"),
        ("a|b", r"a\|b"),
    ],
)
def test_markdown(text: str, shown: str):
    assert markdown(text) == shown


def test_code_holds_any_number_of_ticks():
    assert code("a`b``c") == "``` a`b``c ```"
    assert code("plain") == "`plain`"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("runs/data", "runs/data"),
        ("/srv/x/data/", "data"),
        ("~me", "me"),
        ("../up/data", "data"),
        ("C:\\a\\b", "b"),
        ("s3://key:secret@bucket/data?token=1", "s3://bucket/data"),
    ],
)
def test_place(text: str, shown: str):
    assert public_place(text) == shown


def test_bibtex_and_line_leave_nothing_to_obey():
    assert bibtex("a}{\\input{x}\n%") == "a   input x"
    assert line("a" * 1000) == "a" * 299 + "…"


def test_an_evaluation_may_have_its_own_folder(run: Path):
    """As the demo does, whose own sheet of images lies beside the card."""
    (run / "evaluation").mkdir()
    for name in ("metrics.json", "report.html", "samples"):
        (run / name).rename(run / "evaluation" / name)
    (run / "samples.png").rename(run / "evaluation" / "samples.png")
    text = card(run).read_text(encoding="utf-8")
    assert "](evaluation/samples.png)" in text
    assert "`evaluation/metrics.json` and `evaluation/report.html`" in text
    assert front_matter(text)["widget"][0]["output"]["url"] == "evaluation/samples/0.png"
    assert "n 4, CI" in section(text, "### Results")


def test_training_flop_with_two_ratios_and_no_verdict(run: Path, edit: Callable[..., None]):
    assert "Training FLOP: not measured." in card(run).read_text(encoding="utf-8")
    edit(run / "facts.json", {"flop_per_image": 2e13, "images_seen": 46_200_000})
    text = card(run).read_text(encoding="utf-8")
    assert "2e+13 FLOP per image × 46,200,000 images = 9.24e+20 FLOP" in text
    assert "That is 0.00924 of the 1e23 FLOP" in text
    assert "and 0.02772 of a third of it" in text
    card(run, check=True)


def test_openrail_is_stated_with_its_restrictions_in_full(run: Path, edit: Callable[..., None]):
    assert "Attachment A" not in card(run).read_text(encoding="utf-8")
    edit(run / "recipe.yaml", {"run.licence": "openrail++"})
    text = section(card(run).read_text(encoding="utf-8"), "### Recommendations")
    assert len(re.findall(r"^- ", text, re.MULTILINE)) == 11
    assert "exploiting, harming or attempting to exploit or harm minors" in text


def test_authors_contact_citation_and_region_come_from_the_recipe(run: Path, edit: Callable[..., None]):
    entry = "@misc{ours,\n  title = {Ours `quoted`},\n}"
    edit(
        run / "recipe.yaml",
        {"run.authors": ["A. One", "B. Two"], "run.contact": "one@example.org", "run.citation": entry,
         "run.region": "France", "run.grid_co2": 50.0},
    )  # fmt: skip
    text = card(run).read_text(encoding="utf-8")
    assert "for A. One, B. Two" in section(text, "## Model Card Authors")
    assert section(text, "## Model Card Contact") == "one&#64;example.org"
    assert "@misc{ours,\ntitle = {Ours 'quoted'},\n}" in section(text, "## Citation")
    assert "**Compute Region:** France" in text
    assert front_matter(text)["co2_eq_emissions"]["geographical_location"] == "France"


def test_measured_distances_are_on_the_card_and_in_the_index(run: Path):
    text = card(run).read_text(encoding="utf-8")
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["image_set"]["distributions"][0]
    assert f"| {found['drawn']} | {found['reference']} |" in text
    metrics = [one for row in front_matter(text)["model-index"][0]["results"] for one in row["metrics"]]
    named = [one["name"] for one in metrics]
    assert any(name.startswith("cmmd on nano's own vision encoder") for name in named)
    rows = yaml.safe_load((run / ".eval_results" / "terminus.yaml").read_text(encoding="utf-8"))
    assert len(rows) == len(metrics)
    assert {"dataset", "value", "date", "notes"} == rows[0].keys()


def test_the_data_summary_has_the_commissions_sections_and_is_checked(run: Path):
    card(run)
    path = run / "data-summary.md"
    text = path.read_text(encoding="utf-8")
    headings = [row for row in text.splitlines() if row.startswith("##")]
    assert headings[:5] == [
        "## 1. General information", "### 1.1 Provider identification", "### 1.2 Model identification",
        "### 1.3 Modalities, overall training data size and other characteristics", "## 2. List of data sources",
    ]  # fmt: skip
    assert headings[-4:] == [
        "## 3. Data processing aspects",
        "### 3.1 Respect of reservation of rights from text and data mining exception or limitation",
        "### 3.2 Removal of illegal content", "### 3.3 Other information",
    ]  # fmt: skip
    assert "less than 1 million images (13,226 for training)" in text
    assert "the Fluent emoji drawings that come with Terminus" in text
    card(run, check=True)
    path.write_text(text.replace("13,226", "14,000"), encoding="utf-8")
    with pytest.raises(UserError, match=r"14,000 is not in the run's files"):
        card(run, check=True)
    path.unlink()
    with pytest.raises(UserError, match="no data summary to check"):
        card(run, check=True)
