"""Benchmarks that a clone runs: `python -m benchmarks train` and `load`, and the scripts beside this file."""
