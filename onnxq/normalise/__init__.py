"""Normalisation: rewrite a model to one with equal outputs and fewer kinds of nodes."""
