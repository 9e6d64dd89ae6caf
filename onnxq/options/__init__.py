"""Every option of a run, stated once, and the recipe that holds their values."""
