"""The stage that gives a model with equal outputs and fewer kinds of nodes."""
