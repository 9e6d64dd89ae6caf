"""The options of a run, each stated once, and the recipe that holds their values."""
