"""ONNX Runtime sessions, large weights, temporary files, child processes, rows on disk."""
