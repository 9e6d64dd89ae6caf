"""From the student and its numbers to a file that stock ONNX Runtime runs."""
