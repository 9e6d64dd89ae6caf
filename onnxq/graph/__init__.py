"""Facts about graphs and edits of them, on onnx-ir alone."""
