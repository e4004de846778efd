"""Terminus: SDXL models with a zero-terminal-SNR schedule and velocity prediction, made and put to use."""
