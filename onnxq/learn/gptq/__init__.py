"""GPTQ: scales, integer weights and biases fitted layer by layer, without gradients."""
