"""Quantized files of other tools, in the forms that they have, against ONNX Runtime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.frontend.qdq_models import QdqGraph, run_onnx, run_relax
from tests.quantize.conftest import separable_network
from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.passes.islands import float_islands
from tvm_mobilenet.frontend.pipeline import canonicalize

RNG = np.random.default_rng(21)

VARIANTS: dict[str, dict[str, Any]] = {
    "uint8 activations, a scale for each output": {"per_channel": True},
    "one scale for all weights": {"per_channel": False},
    "symmetric int8 activations": {
        "activation_type": "QInt8",
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
    "asymmetric int8 activations": {"activation_type": "QInt8", "per_channel": True},
    "float32 biases": {"per_channel": True, "extra_options": {"QuantizeBias": False}},
    "float32 weights, quantized in the graph": {
        "per_channel": True,
        "extra_options": {"AddQDQPairToWeight": True},
    },
    "activations kept": {
        "per_channel": True,
        "extra_options": {"QDQKeepRemovableActivations": True},
    },
    "a pair for each reader": {"per_channel": True, "extra_options": {"DedicatedQDQPair": True}},
    "QuantizeLinear of com.microsoft": {
        "per_channel": True,
        "extra_options": {"UseQDQContribOps": True},
    },
    "operators": {"per_channel": True, "quant_format": "QOperator"},
    "symmetric uint8 weights": {
        "weight_type": "QUInt8",
        "extra_options": {"WeightSymmetric": True},
    },
}


class _Reader:
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._left = [rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"x": self._left.pop()} if self._left else None


def quantized(tmp_path: Path, **options: Any) -> onnx.ModelProto:
    from onnxruntime import quantization

    for name in ("activation_type", "weight_type"):
        if name in options:
            options[name] = quantization.QuantType[options[name]]
    if "quant_format" in options:
        options["quant_format"] = quantization.QuantFormat[options["quant_format"]]
    options.setdefault("activation_type", quantization.QuantType.QUInt8)
    options.setdefault("weight_type", quantization.QuantType.QInt8)
    source, out = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    onnx.save(separable_network(high=6.0), source)
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(source, out, _Reader(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return onnx.shape_inference.infer_shapes(onnx.load(out))


def integer_products(mod: IRModule) -> int:
    return sum(
        is_call(b.value, "nn.conv2d", "matmul") and str(b.var.ty.dtype) == "int32"
        for b in Dataflow(mod).bindings
    )


SLOW = {
    "one scale for all weights",
    "asymmetric int8 activations",
    "a pair for each reader",
    "QuantizeLinear of com.microsoft",
    "activations kept",
    "float32 biases",
    "symmetric uint8 weights",
}
"""Near to another one."""


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in VARIANTS],
)
def test_a_file_of_onnx_runtime_becomes_integer(variant: str, tmp_path: Path) -> None:
    model = quantized(tmp_path, **VARIANTS[variant])
    mod = canonicalize(import_onnx(model))
    assert integer_products(mod) == 5
    scale = np.abs(run_onnx(model, np.zeros((1, 3, 16, 16), np.float32))).max()
    for _ in range(3):
        image = RNG.normal(0, 1, (1, 3, 16, 16)).astype(np.float32)
        expected = run_onnx(model, image)
        step = max(np.abs(expected).max(), scale) / 100
        np.testing.assert_allclose(run_relax(mod, image), expected, atol=step)


def test_a_matrix_product_turned_by_the_exporter(tmp_path: Path) -> None:
    """PyTorch's way: weights (O, I) dequantized, then transposed; the bias is float32."""
    graph = QdqGraph()
    weight = RNG.integers(-127, 128, (4, 8)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.02, 4).astype(np.float32)
    x = graph.through("x", "xd", 0.03, np.uint8(100))
    w = graph.dequantize(graph.constant(weight), "wd", scale, np.zeros(4, np.int8), axis=0)
    turned = graph.node("Transpose", [w], "wt", perm=[1, 0])
    product = graph.node("MatMul", [x, turned], "p")
    bias = graph.constant(RNG.normal(0, 1, 4).astype(np.float32))
    graph.quantize(graph.node("Add", [product, bias], "s"), "y", 0.1, np.uint8(120))
    model = graph.model((3, 8), "y", (3, 4), "uint8")
    mod = canonicalize(import_onnx(model))
    assert integer_products(mod) == 1
    assert float_islands(mod) == ()
    image = RNG.normal(0, 1, (3, 8)).astype(np.float32)
    found, expected = run_relax(mod, image), run_onnx(model, image)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def residual_block(*, is_scaled_alike: bool = True) -> onnx.ModelProto:
    """Add, multiply by a gate, hard-swish, concatenation, maximum pooling: what is no product."""
    graph = QdqGraph()
    x = graph.through("x", "xd", 0.03, np.uint8(100))
    weight = graph.constant(RNG.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8))
    w = graph.dequantize(weight, "wd", np.full(8, 0.004, np.float32), np.zeros(8, np.int8))
    c = graph.through(graph.node("Conv", [x, w], "c"), "cd", 0.05, np.uint8(128))
    s = graph.through(graph.node("Add", [c, x], "s"), "sd", 0.07, np.uint8(117))
    h = graph.through(graph.node("HardSwish", [s], "h"), "hd", 0.05, np.uint8(8))
    pool = graph.node("GlobalAveragePool", [h], "g")
    g = graph.through(pool, "gd", 0.02, np.uint8(20))
    gate = graph.through(graph.node("HardSigmoid", [g], "gs"), "gsd", 1 / 255, np.uint8(0))
    m = graph.through(graph.node("Mul", [h, gate], "m"), "md", 0.04, np.uint8(9))
    p = graph.node("MaxPool", [m], "p", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    pq = graph.through(p, "pd", 0.04, np.uint8(9))
    scale = 0.05 if is_scaled_alike else 0.11
    joined = graph.node("Concat", [pq, h], "j", axis=1)
    graph.quantize(joined, "y", scale, np.uint8(8))
    return graph.model((1, 8, 6, 6), "y", (1, 16, 6, 6), "uint8")


@pytest.mark.parametrize("is_scaled_alike", [pytest.param(True, marks=pytest.mark.slow), False])
def test_everything_between_products_has_integers_at_both_ends(is_scaled_alike: bool) -> None:
    model = residual_block(is_scaled_alike=is_scaled_alike)
    mod = canonicalize(import_onnx(model))
    islands = float_islands(mod)
    assert [island.tensor for island in islands] == ["h", "gs"]
    assert all(island.is_quantized_again for island in islands)
    for _ in range(3):
        image = RNG.normal(0, 1.5, (1, 8, 6, 6)).astype(np.float32)
        found, expected = run_relax(mod, image), run_onnx(model, image)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_weights_that_do_not_fit_stay_in_float_and_are_listed() -> None:
    graph = QdqGraph()
    weight = RNG.integers(0, 256, (4, 8, 1, 1)).astype(np.uint8)
    x = graph.through("x", "xd", 0.03, np.uint8(100))
    w = graph.dequantize(graph.constant(weight), "wd", np.float32(0.01), np.uint8(3))
    graph.quantize(graph.node("Conv", [x, w], "c"), "y", 0.1, np.uint8(120))
    model = graph.model((1, 8, 5, 5), "y", (1, 4, 5, 5), "uint8")
    mod = canonicalize(import_onnx(model))
    (island,) = float_islands(mod)
    assert (island.tensor, island.operators) == ("c", ("nn.conv2d",))
    assert "do not fit into int8" in island.reason
    image = RNG.normal(0, 1, (1, 8, 5, 5)).astype(np.float32)
    found, expected = run_relax(mod, image), run_onnx(model, image)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_sixteen_bits_and_zero_points_for_each_channel_are_refused_by_name() -> None:
    wide = QdqGraph(opset=21)
    wide.node("Relu", [wide.through("x", "xd", 0.001, np.uint16(100))], "y")
    with pytest.raises(UnsupportedOpError, match="activations of uint16"):
        canonicalize(import_onnx(wide.model((1, 3, 4, 4), "y", (1, 3, 4, 4))))
    many = QdqGraph()
    scales = many.constant(np.full(3, 0.1, np.float32))
    zeros = many.constant(np.arange(3, dtype=np.uint8))
    q = many.node("QuantizeLinear", ["x", scales, zeros], "q", axis=1)
    many.node("Relu", [many.node("DequantizeLinear", [q, scales, zeros], "d", axis=1)], "y")
    with pytest.raises(UnsupportedOpError, match="with 3 scales"):
        canonicalize(import_onnx(many.model((1, 3, 4, 4), "y", (1, 3, 4, 4))))


def test_an_operator_without_a_spelling_is_refused_by_name(tmp_path: Path) -> None:
    model = quantized(tmp_path, per_channel=True, quant_format="QOperator")
    node = next(n for n in model.graph.node if n.op_type == "QLinearConv")
    node.op_type, node.domain = "QLinearSoftmax", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOpError, match="QLinearSoftmax"):
        import_onnx(model)
