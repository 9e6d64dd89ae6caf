"""Distillation: a network of another architecture learns another one's outputs."""
