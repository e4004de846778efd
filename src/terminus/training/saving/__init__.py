"""Checkpoints that survive every kill, and what a run may not change when it resumes."""
