"""The experiment on zero terminal SNR: what each objective learns of black and white (docs/experiments.md)."""
