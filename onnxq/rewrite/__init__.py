"""Graph rewrites: equalization, and the student with its fake-quant nodes."""
