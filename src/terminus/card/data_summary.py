"""`data-summary.md`: the public summary of training content, by the sections of the European Commission's template.

It lies beside the card. As there, what no record holds is said to be not stated; which law applies it does not say.
"""

from __future__ import annotations

from terminus.card.documents import Document
from terminus.card.facts import FinishedRun
from terminus.card.render import card_environment

FILE = "data-summary.md"
_KINDS = {
    "embedded": "the Fluent emoji drawings that come with Terminus (MIT)",
    "folder": "a folder of images",
    "webdataset": "tar files of images (webdataset)",
    "table": "a table of images",
    "coco": "COCO's images and captions",
    "laion": "images downloaded from the addresses of a LAION-style table",
    "midjourney": "images of an image generator, in a Midjourney-style table",
    "huggingface": "a data set of the Hugging Face Hub",
}


def render_data_summary(run: FinishedRun) -> str:
    """The whole document."""
    return card_environment().get_template("data-summary.md.j2").render(
        run=run, recipe=run.recipe, facts=run.facts, report=run.report, size_range=_size_range, described=_described,
    )  # fmt: skip


def _size_range(images: float | None) -> str | None:
    """The template's ranges."""
    if images is None:
        return None
    if images < 1e6:
        return "less than 1 million images"
    return "1 million to 1 billion images" if images <= 1e9 else "more than 1 billion images"


def _described(source: Document) -> str:
    kind = source.text("kind") or "a source that is not stated"
    return _KINDS.get(kind, f"kind {kind}")
