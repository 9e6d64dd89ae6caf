"""The stage that reads a model file, or says in one sentence why it can't."""
