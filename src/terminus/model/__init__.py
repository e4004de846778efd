"""Networks and their files; diffusers and transformers stay behind these doors.

`model.text` cuts a caption that is too long and says so; what transformers says of it, errors to come, is untrue then.
Nor is it news that torchvision, which nothing here uses, is not installed.
"""

from __future__ import annotations

import logging


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message.startswith("Token indices sequence length is longer") or "requires torchvision" in message)


for _name in ("tokenization_utils_base", "utils.import_utils"):
    logging.getLogger(f"transformers.{_name}").addFilter(_is_news)
