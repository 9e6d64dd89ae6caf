"""Learning: values by parameter name, found with unlabelled data."""
