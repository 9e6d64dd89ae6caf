"""What can be said about any graph of onnx-ir."""
