"""Is the compiled model the model? Outputs, layers and accuracy against other implementations."""

from tvm_mobilenet.verify.report import VerifyReport, verify

__all__ = ["VerifyReport", "verify"]
