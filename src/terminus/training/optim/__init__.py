"""Optimizers and what they keep: moments, moving average, clipping, rounding."""
