"""Settings of each layer, found by what each costs the outputs: sweep, allocation, search."""
