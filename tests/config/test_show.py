"""What is in force and what may be set, for reading and for other programs."""

from __future__ import annotations

from terminus.config.outline import leaf_settings
from terminus.config.show import explain, schema, show_settings

TEXT = "name: x\nsources: [{path: a}]\n"


def test_show_gives_every_value_and_who_set_it(read):
    lines = [" ".join(line.split()) for line in show_settings(read(TEXT, "training.seed=7"))]
    assert "name = x # r.yaml:1:7" in lines
    assert "training.seed = 7 # command line: training.seed=7" in lines
    assert "weighting.gamma = 5.0 # default" in lines
    assert "sources.0.weight = 1.0 # default" in lines
    assert "anchor = null # default" in lines
    assert "columns = {} # default" in lines


def test_explain_gives_type_default_and_documentation(read):
    lines = explain(read(TEXT))
    assert "* name: text = required" in lines
    assert "* sources.*.path: path = required" in lines
    assert "  sources.*.weight: number = 1.0" in lines
    assert "  weighting[min_snr].form: augmented | paper = augmented" in lines
    assert "  training.images: integer | all = all" in lines
    assert "  training.betas: [number, number] = [0.9, 0.999]" in lines
    assert "  weighting.kind: constant | min_snr = min_snr" in lines
    at = lines.index("  weighting[min_snr].gamma: number = 5.0")
    assert lines[at + 1].strip() == "Where the weight is cut off."


def test_explain_marks_what_the_recipe_sets_of_the_chosen_kind(read):
    marked = [line for line in explain(read(TEXT, "weighting={kind: min_snr, gamma: 1}")) if line.startswith("* ")]
    assert [line.split(":")[0] for line in marked] == [
        *("* name", "* weighting.kind", "* weighting[min_snr].gamma", "* sources.*.path"),
    ]


def test_the_outline_counts_each_leaf_and_each_choice_once(schema):
    keys = [setting.key for setting in leaf_settings(schema)]
    assert len(keys) == len(set(keys))
    assert "weighting[min_snr].form" in keys
    assert "anchor.path" in keys
    assert [key for key in keys if key.endswith("kind")] == ["weighting.kind"]


def test_the_json_schema_is_closed_and_documented(request):
    described = schema(request.getfixturevalue("schema"))
    training = described["$defs"]["Training"]
    assert training["additionalProperties"] is False
    assert training["properties"]["seed"]["description"] == "The root of everything random."
    assert described["required"] == ["name"]
