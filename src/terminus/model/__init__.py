"""Networks and their files; diffusers and transformers stay behind these doors.

`model.text` cuts a caption that is too long and says so; what transformers says of it, errors to come, is untrue then.
"""

from __future__ import annotations

import logging


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Token indices sequence length is longer")


logging.getLogger("transformers.tokenization_utils_base").addFilter(_is_news)
