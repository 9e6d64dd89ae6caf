"""Learning: new parameters by name, trained on unlabelled samples."""
