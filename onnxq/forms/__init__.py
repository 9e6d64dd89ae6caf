"""Equal forms of a model, and which of them is quantized best."""
