"""Ways out of the project: ONNX and NIR."""
