"""Execution of the trained networks: precision, compilation, adapters, frozen weights."""
