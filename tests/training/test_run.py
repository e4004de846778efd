"""What a run refuses, what it measures, and that training learns."""

from __future__ import annotations
