"""The one file that knows in which module of TVM a name lives.

TVM moves its Python modules between releases (`tir` became `tirx` and `s_tir`); what the project
uses of it beyond `tvm.relax` is named here once.
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx
from tvm.error import OpNotImplemented
from tvm.ir import GenericConst, IRModule, Op
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.buffer import buffer_data
from tvm.tirx.script.builder import ir as T

__all__ = [
    "GenericConst",
    "IRBuilder",
    "IRModule",
    "ONNXGraphImporter",
    "Op",
    "OpNotImplemented",
    "PrimFunc",
    "T",
    "buffer_data",
    "relax",
    "tirx",
    "tvm",
]
