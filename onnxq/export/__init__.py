"""From the student and its quantization parameters to a file that stock ONNX Runtime runs."""
