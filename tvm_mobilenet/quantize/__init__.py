"""Post-training quantization: a float ONNX file and some inputs to a QDQ ONNX file."""
