"""Loading: read a model file, or say in one sentence why it can't be read."""
