"""Puts a trained nano into the package: the model folder, the logs of its runs, and their recipes.

    python scripts/build_nano.py runs/nano-vae runs/nano-text-encoders runs/nano-unet runs/nano-focus

The recipes are those of the same names, trained in this order; `terminus prepare nano-vae` comes before the
first, `terminus prepare nano-unet` and `terminus prepare nano-focus` before those. The last run is shipped.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

from terminus.model.components import load_components
from terminus.model.weights import SHIPPED

README = """# nano

The model that ships with Terminus: SDXL's classes at 64 pixels, velocity prediction, zero terminal SNR. Apache-2.0.
Trained on the embedded drawings (`../emoji`, MIT) by the recipes in `training/`, whose logs lie beside them.
Its card, with every number, is `docs/nano/README.md` of the repository.
"""

LIMIT = 25 * 10**6
"""Bytes of all weights together."""


def main(runs: list[Path]) -> None:
    target = SHIPPED["nano"]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(runs[-1] / "model", target)
    for run in runs:
        history = target / "training" / run.name.removeprefix("nano-")
        history.mkdir(parents=True)
        shutil.copyfile(run / "recipe.yaml", history / "recipe.yaml")
        shutil.copyfile(run / "facts.json", history / "facts.json")
        # Fixed name and time in the header: the same log gives the same bytes.
        with (history / "log.jsonl.gz").open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write((run / "log.jsonl").read_bytes())
    (target / "README.md").write_text(README, encoding="utf-8")
    load_components(target)
    weights = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
    if weights > LIMIT:
        raise SystemExit(f"the weights take {weights} bytes, the package allows {LIMIT}")
    total = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"weights {weights / 1e6:.1f} MB, everything {total / 1e6:.1f} MB in {target.name}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
