"""The sizes offered for a model are those that it draws."""

from __future__ import annotations

from pathlib import Path

from terminus.model.components import load_components
from terminus.model.naming import SHIPPED
from terminus.sampling.settings import nearest_size, size_multiple, size_of_shape
from terminus.sampling.shapes import ASPECTS
from terminus.serving import drawable
from terminus.sizes import Size


def test_shapes_and_limits_are_those_of_sampling():
    components = load_components("nano")
    offered = drawable.drawable(SHIPPED["nano"], components.native_pixels, True)
    assert offered["sizes"]["multiple"] == size_multiple(components)
    for shape in offered["shapes"]:
        size = Size(shape["height"], shape["width"])
        assert size == size_of_shape(ASPECTS[shape["name"]], components)
    smallest, largest = offered["sizes"]["smallest"], offered["sizes"]["largest"]
    assert nearest_size(Size(1, 10**6), components) == Size(smallest, largest)
    assert offered["rescale"] == 0.7


def test_a_single_file_has_sdxl_s_sizes(tmp_path: Path):
    offered = drawable.drawable(tmp_path / "model.safetensors", 1024, False)
    assert [(one["width"], one["height"]) for one in offered["shapes"]] == [
        (1024, 1024), (896, 1152), (1152, 896), (768, 1344), (1344, 768),
    ]  # fmt: skip
    assert offered["sizes"] == {"multiple": 32, "smallest": 256, "largest": 4096}
    assert offered["rescale"] == 0.0
