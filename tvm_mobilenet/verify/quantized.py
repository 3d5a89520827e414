"""The layers of a quantized model: ONNX Runtime's integers, and what they stand for.

A layer is judged alone: it gets ONNX Runtime's integers for its input, so that a step of difference
is its own and not handed down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from tvm_mobilenet.inputs import in_onnx_layout
from tvm_mobilenet.verify.engines import onnx_session

__all__ = ["IntegerReference", "read_float_model", "steps_apart", "without_rounding"]

Array = npt.NDArray[Any]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class _Scale:
    scale: Array
    zero_point: Array
    source: str
    """The float tensor that was quantized."""


class IntegerReference:
    """What ONNX Runtime and a float model hold for the tensors that layers compute."""

    def __init__(
        self,
        model: onnx.ModelProto,
        names: Sequence[str],
        feeds: Mapping[str, Array],
        float_model: onnx.ModelProto | None = None,
    ) -> None:
        self._scales = _scales(model)
        self._is_other_model = float_model is not None
        self.values = _run(model, names, feeds, optimize=True)
        """By tensor, as in ONNX: integers where the tensor is quantized."""
        floating = float_model or without_rounding(model)
        sources = self._float_names(model, floating)
        floats = _run(floating, list(sources.values()), feeds, optimize=False)
        self._floats = {name: floats[s] for name, s in sources.items() if s in floats}

    def _float_names(self, model: onnx.ModelProto, floating: onnx.ModelProto) -> dict[str, str]:
        """Return what the float model calls each tensor.

        An output keeps its name behind the rounding; what is rounded has a new one.
        """
        known = {output for node in floating.graph.node for output in node.output}
        restored = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == _DEQUANTIZE}
        names = {}
        for name in self.values:
            source = self._scales[name].source if name in self._scales else name
            names[name] = source if source in known else restored.get(name, source)
        return names

    def in_place_of(self, name: str, ours: Array, layout: str) -> Array | None:
        """Return ONNX Runtime's value in the layout and dtype of ours; None without one."""
        theirs = self.values.get(name)
        if theirs is None or theirs.size != ours.size:
            return None
        moved = theirs.transpose(0, 2, 3, 1) if layout == "NHWC" and theirs.ndim == 4 else theirs
        shifted = moved.astype(np.int64) + _shift(ours.dtype, moved.dtype)
        whole = shifted if moved.dtype.kind in "iu" else moved
        placed: Array = np.ascontiguousarray(whole.reshape(ours.shape).astype(ours.dtype))
        return placed

    def steps(self, name: str, ours: Array, layout: str) -> int | None:
        """Return by how many steps a layer's integers are off at most; None for a float tensor."""
        theirs = self.values.get(name)
        if theirs is None or theirs.dtype.kind not in "iu" or theirs.size != ours.size:
            return None
        return steps_apart(theirs, in_onnx_layout(ours, layout).reshape(theirs.shape))

    def signal_to_noise_db(self, name: str) -> float | None:
        """Return how far quantization has brought a tensor from the float model, in dB.

        Another float model than this one's own may have channels of another size, evened out since:
        it is compared up to a factor for each channel.
        """
        values, floats = self.values.get(name), self._floats.get(name)
        if values is None or floats is None or values.shape != floats.shape:
            return None
        found = values.astype(np.float64)
        if values.dtype.kind in "iu" and name not in self._scales:
            return None
        if name in self._scales:
            scale = self._scales[name]
            found = (found - scale.zero_point.astype(np.float64)) * scale.scale.astype(np.float64)
        expected = floats.astype(np.float64)
        if self._is_other_model and found.ndim == 4:
            expected = expected * _factors(found, expected)
        error = float(np.square(found - expected).sum())
        signal = float(np.square(expected).sum())
        return 10 * float(np.log10(signal / error)) if error > 0 and signal > 0 else None


def _factors(found: Array, expected: Array) -> Array:
    """Return the factor for each channel (1, C, 1, 1) that brings `expected` nearest to `found`."""
    product = (found * expected).sum(axis=(0, 2, 3), keepdims=True)
    power = np.square(expected).sum(axis=(0, 2, 3), keepdims=True)
    found_factors: Array = np.divide(product, power, out=np.ones_like(power), where=power > 0)
    return found_factors


def steps_apart(theirs: Array, ours: Array) -> int:
    """Return the largest difference of two integer tensors, int8 q counted as uint8 q + 128."""
    difference = ours.astype(np.int64) - theirs.astype(np.int64) - _shift(ours.dtype, theirs.dtype)
    return int(np.abs(difference).max(initial=0))


def _shift(ours: Any, theirs: Any) -> int:
    """Return what is added to an integer of dtype `theirs` to stand for the same in `ours`."""
    if np.dtype(ours) == np.int8 and np.dtype(theirs) == np.uint8:
        return -128
    if np.dtype(ours) == np.uint8 and np.dtype(theirs) == np.int8:
        return 128
    return 0


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a QDQ model with its activations in float32: clipped to their ranges, not rounded.

    Its weights are the rounded ones.
    """
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = []
    replaced: dict[str, str] = {}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
        if node.op_type == _QUANTIZE and node.input[0] not in constants:
            scale, zero = _quantization(node, constants)
            if scale is None or scale.size != 1:
                nodes.append(node)
                continue
            ends = np.iinfo(zero.dtype)
            bounds = [
                np.float32((float(end) - float(zero.reshape(-1)[0])) * float(scale.reshape(-1)[0]))
                for end in (ends.min, ends.max)
            ]
            names = [f"{node.output[0]}_low", f"{node.output[0]}_high"]
            for name, bound in zip(names, bounds, strict=True):
                copy.graph.initializer.append(numpy_helper.from_array(np.asarray(bound), name))
            clipped = f"{node.output[0]}_unrounded"
            nodes.append(helper.make_node("Clip", [node.input[0], *names], [clipped]))
            replaced[node.output[0]] = clipped
        elif node.op_type == _DEQUANTIZE and node.input[0] in replaced.values():
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return copy


def read_float_model(path: Path) -> onnx.ModelProto:
    """Read the float model that a quantized one was made from."""
    from tvm_mobilenet.onnx_file import read_exported

    read_exported(path)
    return onnx.load(str(path))


def _quantization(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[Array | None, Array]:
    if node.input[1] not in constants:
        return None, np.zeros(1, np.uint8)
    scale = numpy_helper.to_array(constants[node.input[1]])
    zero = np.zeros(1, np.uint8)
    if len(node.input) > 2 and node.input[2] in constants:
        zero = numpy_helper.to_array(constants[node.input[2]])
    return scale, zero


def _scales(model: onnx.ModelProto) -> dict[str, _Scale]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == _QUANTIZE:
            scale, zero = _quantization(node, constants)
            if scale is not None and scale.size == 1:
                found[node.output[0]] = _Scale(scale, zero, node.input[0])
    return found


def _run(
    model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array], *, optimize: bool
) -> dict[str, Array]:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    present = {name for node in copy.graph.node for name in node.output}
    outputs = {value.name for value in copy.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name in present]
    for name in wanted:
        if name not in outputs:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    if not wanted:
        return {}
    session = onnx_session(copy.SerializeToString(), optimize=optimize)
    return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
