"""Quantized models become integer arithmetic, and its integers are ONNX Runtime's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.qdq_models import QdqGraph, conv_accumulator, run_onnx, run_relax
from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.passes.islands import float_islands
from tvm_mobilenet.frontend.pipeline import canonicalize

RNG = np.random.default_rng(11)


def int8(*shape: int, low: int = -127) -> np.ndarray:
    return RNG.integers(low, 128, shape).astype(np.int8)


def operators(mod: Any) -> list[str]:
    return [
        binding.value.op.name.removeprefix("relax.")
        for binding in Dataflow(mod).bindings
        if isinstance(binding.value, relax.Call)
    ]


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("zero", [np.uint8(113), np.int8(-9)])
def test_a_convolution_gives_the_integers_of_onnx_runtime(zero: Any, groups: int) -> None:
    """The contract's convolution, against exact integers and against ONNX Runtime, bit by bit."""
    graph = QdqGraph()
    weight = int8(8, 8 // groups, 3, 3)
    weight_scale = RNG.uniform(0.001, 0.01, 8).astype(np.float32)
    scale, out_scale = np.float32(0.0235), np.float32(0.06)
    bias = RNG.integers(-3000, 3000, 8).astype(np.int32)
    out_zero = zero.dtype.type(7)
    x = graph.through("x", "xd", scale, zero)
    w = graph.dequantize(graph.constant(weight), "wd", weight_scale, np.zeros(8, np.int8))
    b = graph.dequantize(graph.constant(bias), "bd", scale * weight_scale, np.zeros(8, np.int32))
    y = graph.node("Conv", [x, w, b], "c", pads=[1] * 4, strides=[2, 2], group=groups)
    graph.quantize(graph.node("Relu", [y], "r"), "y", out_scale, out_zero)
    model = graph.model((1, 8, 9, 9), "y", (1, 8, 5, 5), str(zero.dtype))

    mod = canonicalize(import_onnx(model))
    image = RNG.normal(0, 1.5, (1, 8, 9, 9)).astype(np.float32)
    found = run_relax(mod, image)

    low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    q = np.clip(np.rint(image / scale) + int(zero), low, high)
    acc = conv_accumulator(q, weight, int(zero), stride=2, padding=1, groups=groups)
    acc += bias.reshape(1, -1, 1, 1)
    factor = ((scale * weight_scale) / out_scale).reshape(1, -1, 1, 1)
    rounded = np.rint(acc.astype(np.float32) * factor) + int(out_zero)
    np.testing.assert_array_equal(found, np.clip(rounded, max(low, int(out_zero)), high))
    np.testing.assert_array_equal(found, run_onnx(model, image))
    assert float_islands(mod) == ()
    anchor = next(b.value for b in Dataflow(mod).bindings if is_call(b.value, "nn.conv2d"))
    assert [str(arg.ty.dtype) for arg in anchor.args] == [str(zero.dtype), "int8"]
    assert operators(mod).count("nn.pad") == 1
    assert operators(mod).count("permute_dims") == 2


def test_the_rounding_is_to_even_and_the_ends_are_those_of_the_dtype() -> None:
    """Accumulators of every parity, times one half, beyond both ends of uint8."""
    graph = QdqGraph()
    weight = np.ones((1, 1, 1, 1), np.int8)
    x = graph.through("x", "xd", 1.0, np.int8(0))
    w = graph.dequantize(graph.constant(weight), "wd", np.ones(1, np.float32), np.zeros(1, "i1"))
    y = graph.node("Conv", [x, w], "c")
    graph.quantize(y, "y", 2.0, np.int8(-120))
    model = graph.model((1, 1, 16, 16), "y", (1, 1, 16, 16), "int8")
    image = np.arange(-128, 128, dtype=np.float32).reshape(1, 1, 16, 16)
    found = run_relax(canonicalize(import_onnx(model)), image)
    expected = np.clip(np.rint(image / 2) - 120, -128, 127)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, run_onnx(model, image))
