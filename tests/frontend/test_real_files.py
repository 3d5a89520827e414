"""Files that NNCF and torchao wrote, as they are; `real/make.py` had them written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.frontend.qdq_models import QdqGraph, run_onnx, run_relax
from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.passes.islands import float_islands
from tvm_mobilenet.frontend.pipeline import canonicalize

HERE = Path(__file__).parent / "real"
RNG = np.random.default_rng(11)


def read(path: Path) -> tuple[onnx.ModelProto, IRModule]:
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
    return model, canonicalize(import_onnx(model))


def integer_convolutions(mod: IRModule) -> int:
    convolutions = [b for b in Dataflow(mod).bindings if is_call(b.value, "nn.conv2d")]
    return sum(str(b.var.ty.dtype) == "int32" for b in convolutions)


@pytest.mark.parametrize(
    ("name", "integers"),
    # NNCF leaves the four convolutions of the two gates in float32; torchao quantizes all.
    [("nncf", 13), ("torchao", 17)],
)
def test_the_files_of_other_tools_compute_in_integers(name: str, integers: int) -> None:
    model, mod = read(HERE / f"{name}.onnx")
    assert integer_convolutions(mod) == integers
    reasons = {island.reason for island in float_islands(mod)}
    assert reasons <= {"no integer form", "its weights are not quantized; no integer form"}
    for _ in range(2):
        x = RNG.standard_normal((1, 3, 32, 32), dtype="float32")
        # Operator by operator: ONNX Runtime's optimizer stumbles over torchao's names.
        found, expected = run_relax(mod, x), run_onnx(model, x, optimized=False)
        # Sums of two tensors may be a step of 255 off; wrong scales are off by their ratio.
        assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)


def by_channel(zero: np.ndarray, groups: int) -> onnx.ModelProto:
    """A convolution whose input has a scale for each of its eight channels, as NNCF writes it."""
    graph = QdqGraph()
    scales = graph.constant(np.linspace(0.02, 0.06, 8, dtype=np.float32))
    zeros = graph.constant(zero)
    q = graph.node("QuantizeLinear", ["x", scales, zeros], "q", axis=1)
    d = graph.node("DequantizeLinear", [q, scales, zeros], "d", axis=1)
    weight = RNG.integers(-128, 128, (8, 8 // groups, 3, 3)).astype(np.int8)
    w = graph.dequantize(graph.constant(weight), "wd", np.full(8, 0.01), np.zeros(8, np.int8))
    y = graph.node("Conv", [d, w], "c", pads=[1] * 4, group=groups)
    graph.quantize(y, "y", 0.4, np.uint8(120))
    return graph.model((1, 8, 9, 9), "y", (1, 8, 9, 9), "uint8")


@pytest.mark.parametrize("groups", [8, 1])
def test_a_scale_for_each_channel_of_a_depthwise_input(groups: int) -> None:
    model = by_channel(np.full(8, 100, np.uint8), groups)
    mod = canonicalize(import_onnx(model))
    assert integer_convolutions(mod) == (1 if groups == 8 else 0)
    if groups == 1:
        assert "it is not depthwise" in float_islands(mod)[0].reason
    image = RNG.normal(0, 1.5, (1, 8, 9, 9)).astype(np.float32)
    # Optimized, ONNX Runtime takes the file for one that it cannot compute.
    expected = run_onnx(model, image, optimized=False).astype(int)
    found = run_relax(mod, image).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_zero_points_for_each_channel_are_refused_by_name() -> None:
    model = by_channel(np.arange(8, dtype=np.uint8), 8)
    with pytest.raises(UnsupportedOpError, match="with one zero point"):
        canonicalize(import_onnx(model))


@pytest.mark.parametrize(("groups", "dilation"), [(8, 2), (1, 2), (8, 3), (2, 1), (4, 2)])
def test_dilated_and_grouped_convolutions_are_integers(groups: int, dilation: int) -> None:
    graph = QdqGraph()
    x = graph.through("x", "xd", 0.05, np.uint8(100))
    weight = RNG.integers(-128, 128, (8, 8 // groups, 3, 3)).astype(np.int8)
    w = graph.dequantize(graph.constant(weight), "wd", np.full(8, 0.01), np.zeros(8, np.int8))
    y = graph.node("Conv", [x, w], "c", pads=[dilation] * 4, dilations=[dilation] * 2, group=groups)
    graph.quantize(y, "y", 0.4, np.uint8(120))
    model = graph.model((1, 8, 9, 9), "y", (1, 8, 9, 9), "uint8")
    mod = canonicalize(import_onnx(model))
    assert integer_convolutions(mod) == 1
    assert not float_islands(mod)
    image = RNG.normal(0, 1.5, (1, 8, 9, 9)).astype(np.float32)
    np.testing.assert_array_equal(run_relax(mod, image), run_onnx(model, image))
