"""A small quantized network through selection: every operator finds its kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.frontend.qdq_models import QdqGraph, run_onnx, run_relax
from tvm_mobilenet._tvm import relax, tvm
from tvm_mobilenet.compiler import compile_onnx
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.targets import load_target

CHANNELS = 16


def network(zero: np.generic) -> onnx.ModelProto:
    """Stem, depthwise, pointwise, residual addition, average and dense layer."""
    rng = np.random.default_rng(8)
    graph = QdqGraph()

    def conv(x: str, name: str, shape: tuple[int, ...], **attributes: object) -> str:
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        scale = rng.uniform(0.001, 0.01, shape[0]).astype(np.float32)
        zeros = np.zeros(shape[0], np.int8)
        w = graph.dequantize(graph.constant(weight), f"{name}_w", scale, zeros)
        bias = graph.constant(rng.normal(0, 0.5, shape[0]).astype(np.float32))
        y = graph.node("Conv", [x, w, bias], f"{name}_conv", **attributes)
        return graph.through(graph.node("Relu", [y], f"{name}_relu"), name, 0.05, zero)

    x = graph.through("x", "image", 0.02, zero)
    x = conv(x, "stem", (CHANNELS, 3, 3, 3), pads=[1] * 4, strides=[2, 2])
    y = conv(x, "dw", (CHANNELS, 1, 3, 3), pads=[1] * 4, group=CHANNELS)
    y = conv(y, "pw", (CHANNELS, CHANNELS, 1, 1))
    y = graph.through(graph.node("Add", [x, y], "sum"), "total", 0.09, zero)
    y = graph.node("GlobalAveragePool", [y], "mean")
    y = graph.node("Flatten", [graph.through(y, "pooled", 0.04, zero)], "flat")
    weight = rng.integers(-127, 128, (CHANNELS, 10)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, 10).astype(np.float32)
    w = graph.dequantize(graph.constant(weight), "fc_w", scale, np.zeros(10, np.int8), axis=1)
    y = graph.node("MatMul", [y, w], "fc")
    graph.quantize(y, "y", 0.03, zero)
    return graph.model((1, 3, 20, 20), "y", (1, 10), str(zero.dtype))


@pytest.mark.parametrize("zero", [np.uint8(5), np.int8(-9)], ids=str)
def test_every_operator_finds_its_kernel_and_no_integer_moves(
    zero: np.generic, tmp_path: Path
) -> None:
    model = network(zero)
    onnx.save(model, tmp_path / "model.onnx")
    library = compile_onnx(tmp_path / "model.onnx", load_target("host"), tmp_path / "model.so")
    families = [layer.family for layer in library.layers]
    expected = {"quantize", "conv", "depthwise", "pointwise", "add", "pool", "dense"}
    assert {family.removeprefix("int8_") for family in families} == expected
    image = np.random.default_rng(9).normal(0, 1.5, (1, 3, 20, 20)).astype(np.float32)
    module = tvm.runtime.load_module(str(library.library_path))
    vm = relax.VirtualMachine(module, tvm.cpu())
    found = vm["main"](tvm.runtime.tensor(image)).numpy()
    np.testing.assert_array_equal(found, run_relax(canonicalize(import_onnx(model)), image))
    # Where ONNX Runtime adds in another order, an integer may be its neighbour.
    steps = found.astype(int) - run_onnx(model, image).astype(int)
    assert np.abs(steps).max() <= 1
