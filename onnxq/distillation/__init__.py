"""Distillation: a model of another architecture is trained to give a teacher's outputs."""
