"""The one file that knows in which module of TVM a name lives.

TVM moves its Python modules between releases (`tir` became `tirx` and `s_tir`); what the project
uses of it beyond `tvm.relax` is named here once.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.error import OpNotImplemented
from tvm.ir import GenericConst, IRModule, Op, PointerType, PrimType, StringImm
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import IterVar, PrimFunc
from tvm.tirx.buffer import buffer_data
from tvm.tirx.script.builder import ir as T

__all__ = [
    "GenericConst",
    "IRBuilder",
    "IRModule",
    "IterVar",
    "ONNXGraphImporter",
    "Op",
    "OpNotImplemented",
    "PointerType",
    "PrimFunc",
    "PrimType",
    "Schedule",
    "ScheduleError",
    "StringImm",
    "T",
    "buffer_data",
    "is_tensor_type",
    "relax",
    "tirx",
    "tvm",
]


def is_tensor_type(ty: object) -> bool:
    """Tell whether a Relax type is that of a tensor."""
    return isinstance(ty, relax.TensorType)
