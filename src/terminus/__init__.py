"""Terminus: SDXL models with a zero-terminal-SNR schedule and velocity prediction, made and put to use.

`from terminus import Terminus` loads a model that draws. Names are looked up when they are first asked for, so that
`import terminus`, which every command pays for, imports nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from terminus.sampling.api import Terminus

    __version__: str

__all__ = ["Terminus", "__version__"]

# Read when torch is first imported. Threads of a CPU kernel wait for each other by spinning, GNU OpenMP's for some
# 300,000 turns: beside two busy processes on two cores that made a training step 10 to 20 times as long. 1,000 turns
# is what GNU OpenMP takes itself where it has more threads than cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> object:
    if name == "Terminus":
        from terminus.sampling.api import Terminus

        return Terminus
    if name == "__version__":
        from importlib import metadata

        return metadata.version("terminus-xl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
