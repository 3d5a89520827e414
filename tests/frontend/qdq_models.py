"""Small quantized ONNX files, written node by node, and the integers that they must give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["QdqGraph", "conv_accumulator", "run_onnx", "run_relax"]

Array = np.ndarray


@dataclass
class QdqGraph:
    """A graph in the making; every method returns the name of what it adds."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    opset: int = 20

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def quantize(self, x: str, output: str, scale: Any, zero: Any) -> str:
        names = [x, self.constant(np.float32(scale)), self.constant(zero)]
        return self.node("QuantizeLinear", names, output)

    def dequantize(self, x: str, output: str, scale: Any, zero: Any, axis: int = 0) -> str:
        names = [x, self.constant(np.asarray(scale, np.float32))]
        if zero is not None:
            names.append(self.constant(zero))
        attributes = {"axis": axis} if np.ndim(scale) else {}
        return self.node("DequantizeLinear", names, output, **attributes)

    def through(self, x: str, name: str, scale: Any, zero: Any) -> str:
        """Quantize and dequantize."""
        return self.dequantize(self.quantize(x, f"{name}_q", scale, zero), name, scale, zero)

    def model(
        self, shape: Sequence[int], output: str, out_shape: Sequence[int], dtype: str = "float32"
    ) -> onnx.ModelProto:
        """A model of input `x`, checked, its shapes inferred."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, kind, out_shape)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model)


def conv_accumulator(
    x: Array, w: Array, zero_point: int, *, stride: int, padding: int, groups: int = 1
) -> Array:
    """Convolve integers exactly: x (N, C, H, W) less its zero point, w (O, I/g, kH, kW)."""
    centred = x.astype(np.int64) - zero_point
    centred = np.pad(centred, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    kernel = w.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(centred, kernel, axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    parts = []
    for group in range(groups):
        inputs = slice(group * w.shape[1], (group + 1) * w.shape[1])
        outputs = slice(group * (w.shape[0] // groups), (group + 1) * (w.shape[0] // groups))
        parts.append(
            np.einsum("nchwij,ocij->nohw", windows[:, inputs], w[outputs].astype(np.int64))
        )
    return np.concatenate(parts, axis=1)


def run_onnx(model: onnx.ModelProto, x: Array, *, optimized: bool = True) -> Array:
    """Run a model in ONNX Runtime.

    Optimized, it computes in integers; precision mode, because on AVX2 its ordinary kernel for
    uint8 times int8 saturates.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def run_relax(mod: Any, x: Array) -> Array:
    """Run a module with TVM's own kernels."""
    from tvm_mobilenet._tvm import relax, tvm

    vm = relax.VirtualMachine(
        tvm.compile(mod, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu()
    )
    return np.asarray(vm["main"](tvm.runtime.tensor(x)).numpy())
