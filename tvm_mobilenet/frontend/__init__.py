"""From an ONNX file to a Relax module in NHWC whose convolutions carry all that can be fused."""
