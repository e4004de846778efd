"""How fast, against what, on which machine."""

import terminus.model  # noqa: F401 - before diffusers: it keeps quiet what is no news
