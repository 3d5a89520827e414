"""MobileNets from PyTorch to fast, verified shared libraries for CPUs and small boards.

What the command line does, these functions do in one call; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "bundle_artifact": ("tvm_mobilenet.bundle", "bundle_artifact"),
    "classify_images": ("tvm_mobilenet.classify", "classify"),
    "count_instructions": ("tvm_mobilenet.count", "count_instructions"),
    "compile_model": ("tvm_mobilenet.workflow", "compile_model"),
    "connect_device": ("tvm_mobilenet.rpc.board_device", "connect"),
    "detect_objects": ("tvm_mobilenet.detect", "detect"),
    "diagnose_device": ("tvm_mobilenet.rpc.doctor", "diagnose"),
    "explore": ("tvm_mobilenet.exploration.explorer", "explore"),
    "export_onnx": ("tvm_mobilenet.export", "export_onnx"),
    "list_devices": ("tvm_mobilenet.rpc.devices", "list_devices"),
    "list_boards": ("tvm_mobilenet.boards.registry", "list_boards"),
    "list_opencl_devices": ("tvm_mobilenet.opencl.listing", "list_opencl_devices"),
    "list_models": ("tvm_mobilenet.models.spec", "list_models"),
    "list_targets": ("tvm_mobilenet.targets", "list_targets"),
    "load_target": ("tvm_mobilenet.targets", "load_target"),
    "measure_artifact": ("tvm_mobilenet.measure", "measure"),
    "open_artifact": ("tvm_mobilenet.artifact", "open_artifact"),
    "predict_model": ("tvm_mobilenet.predict", "predict_model"),
    "quantize_model": ("tvm_mobilenet.quantize.quantizer", "quantize_model"),
    "run_model": ("tvm_mobilenet.run", "run"),
    "run_tracker": ("tvm_mobilenet.rpc.tracker", "run_tracker"),
    "segment_images": ("tvm_mobilenet.segmentation.segment", "segment"),
    "serve_board": ("tvm_mobilenet.rpc.serve", "serve_board"),
    "start_board": ("tvm_mobilenet.boards.emulator", "start_board"),
    "stop_board": ("tvm_mobilenet.boards.emulator", "stop_board"),
    "train_model": ("tvm_mobilenet.training.train", "train"),
    "train_quantized": ("tvm_mobilenet.qat", "train_quantized"),
    "tune_model": ("tvm_mobilenet.tune", "tune_model"),
    "write_report": ("tvm_mobilenet.report.write", "write_report"),
    "verify_artifact": ("tvm_mobilenet.verify.report", "verify"),
}
"""Name here, and where it comes from. A name that is also a module's cannot be used: importing the
module would put it in the function's place."""

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
