"""ONNX to Relax, with every variable named after the ONNX tensor it holds.

TVM's importer does the work; the operators for which it emits opaque kernels or code that later
passes cannot see through are converted here instead, into plain Relax arithmetic.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from tvm_mobilenet._tvm import IRModule, ONNXGraphImporter, OpNotImplemented, relax
from tvm_mobilenet.detection.onnx_function import OPERATOR as DETECTIONS
from tvm_mobilenet.errors import FrontendError, UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import Dataflow, constant_array
from tvm_mobilenet.frontend.detections import convert_detections
from tvm_mobilenet.frontend.qoperator import as_qdq

__all__ = ["import_onnx"]

logger = logging.getLogger(__name__)

_MIN_OPSET = 13
"""Older files are brought up to it by ONNX's own converter first."""


def import_onnx(model: onnx.ModelProto) -> IRModule:
    """Import a checked model with fixed shapes; weights become constants.

    Raises:
        UnsupportedOpError: names every operator that cannot be handled, with one of its nodes.
        FrontendError: a node could not be converted; names it.
    """
    opset = _opset(model)
    if opset < _MIN_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _MIN_OPSET)
        except Exception as err:
            raise FrontendError(
                f"the ONNX file uses operator set {opset}, at least {_MIN_OPSET} is needed, and "
                f"converting it failed: {_first_line(err)}; export it again with a newer operator "
                "set"
            ) from err
        opset = _MIN_OPSET
    model = as_qdq(model)
    importer = _Importer(model.graph)
    with warnings.catch_warnings():
        # Names are kept in a table of our own, so that TVM may rename inputs as it likes.
        warnings.simplefilter("ignore")
        mod = importer.from_onnx(model.graph, opset)
    return _rename(mod, importer.names())


def _opset(model: onnx.ModelProto) -> int:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    return 1


class _Importer(ONNXGraphImporter):
    """TVM's importer with our converters first, and errors that name the node."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(None, "float32", keep_params_in_input=False, sanitize=True)
        self._dtype = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            for value in graph.input
        }

    def names(self) -> dict[Any, str]:
        """Return the ONNX tensor name of each Relax variable."""
        names: dict[Any, str] = {}
        for name, expr in self._nodes.items():
            if isinstance(expr, relax.Var):
                names.setdefault(expr, name)
        return names

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        control_flow = [node for node in graph.node if node.op_type in ("If", "Loop", "Scan")]
        if control_flow:
            node = control_flow[0]
            raise UnsupportedOpError(
                f"operator {node.op_type} (node {node.name or node.output[0]!r}) cannot be "
                "handled: models with control flow cannot be compiled; export the model with "
                "the branch or loop resolved"
            )
        known = onnx.GraphProto()
        known.node.extend(node for node in graph.node if node.op_type not in _CONVERTERS)
        try:
            super()._check_for_unsupported_ops(known)
        except OpNotImplemented as err:
            # TVM lists the operators at the end of its message, without their nodes.
            unknown = {name.strip() for name in str(err).rsplit(": ", 1)[-1].split(",")}
            culprits: dict[str, str] = {}
            for node in graph.node:
                if any(node.op_type == name.split()[0] for name in unknown if name):
                    culprits.setdefault(node.op_type, node.name or node.output[0])
            listing = ", ".join(f"{op} (node {name!r})" for op, name in culprits.items())
            raise UnsupportedOpError(
                f"the ONNX file holds operators that cannot be handled: {listing or unknown}; "
                "export the model without them, or cut it before them"
            ) from err

    def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
        node = attrs["tvm_custom"]["name"]
        try:
            converter = _CONVERTERS.get(op_name)
            if converter is not None:
                result = converter(self.bb, list(inputs), attrs)
                if result is not None:
                    return result if isinstance(result, relax.Var) else self.bb.emit(result)
            result = super()._convert_operator(op_name, inputs, attrs, opset)
            if isinstance(result, relax.Call):
                # Bound to a variable at once, so that the tensor has a name of its own.
                result = self.bb.emit(result)
            return result
        except FrontendError:
            raise
        except Exception as err:
            raise UnsupportedOpError(
                f"operator {op_name} (node {node!r}) cannot be handled: {_first_line(err)}"
            ) from err


def _first_line(err: BaseException) -> str:
    lines = [line for line in str(err).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(err).__name__)[:300]


# Converters: (builder, inputs with None for absent ones, attributes) -> expression, or None to
# leave the node to TVM.


def _clip(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Clip(x, low, high) -> minimum(maximum(x, low), high), bounds as constants."""
    del builder
    low, high = attrs.get("min"), attrs.get("max")
    if len(inputs) > 1 and inputs[1] is not None:
        low = _scalar(inputs[1])
        if low is None:
            return None
    if len(inputs) > 2 and inputs[2] is not None:
        high = _scalar(inputs[2])
        if high is None:
            return None
    return _bounded(inputs[0], low, high)


def _bounded(x: Any, low: float | None, high: float | None) -> Any:
    dtype = x.ty.dtype
    dtype = str(dtype.dtype) if hasattr(dtype, "dtype") else str(dtype)
    # A bound that is not a number is no bound, as in ONNX Runtime.
    if low is not None and not math.isnan(low) and low != -math.inf:
        x = relax.op.maximum(x, relax.const(low, dtype))
    if high is not None and not math.isnan(high) and high != math.inf:
        x = relax.op.minimum(x, relax.const(high, dtype))
    return x


def _scalar(expr: Any) -> float | None:
    array = constant_array(expr)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _relu(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Relu(x) -> maximum(x, 0)."""
    del builder, attrs
    return _bounded(inputs[0], 0.0, None)


def _hard_sigmoid(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """HardSigmoid(x) -> clip(alpha * x + beta, 0, 1)."""
    alpha, beta = float(attrs.get("alpha", 0.2)), float(attrs.get("beta", 0.5))
    scaled = builder.emit(relax.op.multiply(inputs[0], relax.const(alpha, "float32")))
    shifted = builder.emit(relax.op.add(scaled, relax.const(beta, "float32")))
    return _bounded(shifted, 0.0, 1.0)


def _hard_swish(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """HardSwish(x) -> x * clip(x / 6 + 0.5, 0, 1)."""
    del attrs
    gate = _hard_sigmoid(builder, inputs, {"alpha": 1 / 6, "beta": 0.5})
    return relax.op.multiply(inputs[0], builder.emit(gate))


def _identity(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Identity and Dropout pass their input through."""
    if attrs["tvm_custom"]["num_outputs"] > 1:
        return None
    del builder
    return inputs[0]


def _batch_norm(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """BatchNormalization(x) -> x * scale + shift with per-channel constants."""
    if attrs.get("training_mode", 0) or attrs["tvm_custom"]["num_outputs"] > 1:
        return None
    arrays = [constant_array(expr) for expr in inputs[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, "float64") for array in arrays)
    scale = gamma / np.sqrt(variance + float(attrs.get("epsilon", 1e-5)))
    shift = beta - mean * scale
    rank = len(inputs[0].ty.shape)
    shape = (1, -1) + (1,) * (rank - 2)
    scaled = builder.emit(
        relax.op.multiply(inputs[0], relax.const(scale.reshape(shape).astype("float32")))
    )
    return relax.op.add(scaled, relax.const(shift.reshape(shape).astype("float32")))


def _pad(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Pad(x) with constant zeros -> nn.pad, which later folds into a convolution."""
    del builder
    mode = attrs.get("mode", b"constant")
    if (mode.decode() if isinstance(mode, bytes) else mode) != "constant" or len(inputs) < 2:
        return None
    pads = constant_array(inputs[1])
    value = 0.0
    if len(inputs) > 2 and inputs[2] is not None:
        given = _scalar(inputs[2])
        if given is None:
            return None
        value = given
    if pads is None or (len(inputs) > 3 and inputs[3] is not None) or (pads < 0).any():
        return None
    before, after = np.split(pads, 2)
    width = [int(n) for pair in zip(before, after, strict=True) for n in pair]
    return relax.op.nn.pad(inputs[0], width, pad_value=value)


def _conv(builder: Any, inputs: list[Any], attrs: dict[str, Any]) -> Any:
    """Conv with SAME padding -> Conv with the pads written out, bias reshaped at once."""
    weight_shape = tuple(int(n) for n in inputs[1].ty.shape)
    if len(weight_shape) != 4 or len(inputs[0].ty.shape) != 4:
        return None
    strides = [int(s) for s in attrs.get("strides", (1, 1))]
    dilations = [int(d) for d in attrs.get("dilations", (1, 1))]
    pads = [int(p) for p in attrs.get("pads", (0, 0, 0, 0))]
    auto_pad = attrs.get("auto_pad", b"NOTSET")
    auto_pad = auto_pad.decode() if isinstance(auto_pad, bytes) else auto_pad
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(
            [int(n) for n in inputs[0].ty.shape][2:],
            weight_shape[2:],
            strides,
            dilations,
            upper=auto_pad == "SAME_UPPER",
        )
    elif auto_pad == "VALID":
        pads = [0, 0, 0, 0]
    result = relax.op.nn.conv2d(
        inputs[0],
        inputs[1],
        strides=strides,
        padding=pads,
        dilation=dilations,
        groups=int(attrs.get("group", 1)),
        data_layout="NCHW",
        kernel_layout="OIHW",
    )
    if len(inputs) > 2 and inputs[2] is not None:
        bias = constant_array(inputs[2])
        if bias is None:
            shift = builder.emit(relax.op.reshape(inputs[2], (1, weight_shape[0], 1, 1)))
        else:
            shift = relax.const(bias.reshape(1, -1, 1, 1))
        result = relax.op.add(builder.emit(result), shift)
    return result


def _same_pads(
    extents: list[int],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
    *,
    upper: bool,
) -> list[int]:
    before, after = [], []
    for extent, taps, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        span = (taps - 1) * dilation + 1
        total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return before + after


def _gemm(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Gemm(x, w, b) with constant w -> matmul(x, w') + b, transposition and factors folded."""
    weight = constant_array(inputs[1])
    if weight is None:
        return _quantized_gemm(builder, inputs, attrs)
    if attrs.get("transA", 0) or weight.dtype != np.float32:
        return None
    if attrs.get("transB", 0):
        weight = weight.T
    weight = np.ascontiguousarray(weight * np.float32(attrs.get("alpha", 1.0)))
    result = relax.op.matmul(inputs[0], relax.const(weight))
    if len(inputs) > 2 and inputs[2] is not None:
        bias = constant_array(inputs[2])
        if bias is None:
            return None
        bias = np.ascontiguousarray(bias * np.float32(attrs.get("beta", 1.0)))
        result = relax.op.add(builder.emit(result), relax.const(bias))
    return result


def _quantized_gemm(builder: Any, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
    """Gemm(x, w, b) of factors 1, with w computed (dequantized) -> matmul(x, w') + b."""
    factors = (attrs.get("alpha", 1.0), attrs.get("beta", 1.0))
    if attrs.get("transA", 0) or factors != (1.0, 1.0):
        return None
    weight = inputs[1]
    if attrs.get("transB", 0):
        weight = builder.emit(relax.op.permute_dims(weight, [1, 0]))
    result = relax.op.matmul(inputs[0], weight)
    if len(inputs) > 2 and inputs[2] is not None:
        result = relax.op.add(builder.emit(result), inputs[2])
    return result


_CONVERTERS: dict[str, Callable[[Any, list[Any], Any], Any]] = {
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Dropout": _identity,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "Pad": _pad,
    "Relu": _relu,
    DETECTIONS: convert_detections,
}


def _rename(mod: IRModule, names: Mapping[Any, str]) -> IRModule:
    """Rename variables after the ONNX tensors they hold."""
    flow = Dataflow(mod)
    flow.names = dict(names)
    return flow.rebuild()
