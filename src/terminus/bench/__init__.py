"""Benchmarks: how fast, against what, on which machine."""

# before diffusers: it keeps quiet what is no news
import terminus.model as terminus_model

__all__ = ["terminus_model"]
