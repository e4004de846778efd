"""How the trained networks are run: precision, compilation, adapters, frozen weights."""
