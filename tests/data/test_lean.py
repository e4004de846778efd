"""Batches, their order, a step and drawing need neither the store nor its readers: a GPU machine may lack them."""

from __future__ import annotations

import subprocess
import sys

ABSENT = ("lance", "daft", "pyarrow", "simplejpeg")
PROGRAM = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import terminus.data.loader
import terminus.training.step
from terminus import runtime
from terminus.model.components import load_components
from terminus.sampling.settings import Settings
from terminus.sampling.tasks import text2img, to_bytes

nano = load_components("nano")
*_, last = text2img(nano, ["a red apple"], [1], Settings(steps=1))
assert to_bytes(nano, last.x).shape == (1, 64, 64, 3)
assert runtime.environment().packages["daft"]
assert not set({ABSENT!r}) & set(sys.modules)
"""


def test_without_the_data_engines():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
