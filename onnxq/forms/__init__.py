"""Equal forms of a model, and the choice of the one that is quantized best."""
