"""Which folder is one of images: said before torch is imported."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OTHERS = ("model_index.json", "recipe.yaml", "unet")
"""What a model's folder or a run's holds."""


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds nothing but images and what lies beside them, or nothing at all."""
    if not path.is_dir() or any((path / name).exists() for name in _OTHERS):
        return False
    inside = list(path.iterdir())
    return not inside or any(one.suffix.lower() in SUFFIXES or one.is_dir() for one in inside)
