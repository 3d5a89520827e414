"""From ONNX to `.tflite`: LiteRT computes what ONNX Runtime does, in float32 and in int8."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.agreement import compute_reference
from benchmarks.cases import quantize
from benchmarks.litert_convert import convert
from benchmarks.onnx_graph import GraphError, read_graph, seeded_inputs
from benchmarks.qdq import read_qdq
from tests.test_compiler import Graph

pytest.importorskip("ai_edge_litert", reason="pip install 'tvm-mobilenet[bench]'")


def _block(path, *, spatial=11):
    """Write a V3 block with all that MobileNets are made of, on a map of odd size."""
    g = Graph(1, 3, spatial, spatial)
    zero, six = g.constant(np.float32(0)), g.constant(np.float32(6))
    stem = g.conv("x", 8, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    a = g.add("HardSwish", stem)
    b = g.add("Clip", g.conv(a, 16, 8, 1), zero, six)
    c = g.add("Relu", g.conv(b, 16, 16, 5, group=16, pads=[2, 2, 2, 2], bias=False))
    pooled = g.add("ReduceMean", c, g.constant(np.array([2, 3])), keepdims=1)
    gate = g.add("Relu", g.conv(pooled, 4, 16, 1))
    gate = g.add("HardSigmoid", g.conv(gate, 16, 4, 1), alpha=1 / 6, beta=0.5)
    d = g.conv(g.add("Mul", c, gate), 8, 16, 1)
    e = g.add("Add", d, a)
    flat = g.add("Flatten", g.add("GlobalAveragePool", e))
    y = g.add("Gemm", flat, g.weights(5, 8), g.weights(5), transB=1)
    return g.save(path, y, opset=18)


def _run(path):
    from ai_edge_litert.interpreter import Interpreter

    graph = read_graph(path)
    interpreter = Interpreter(model_content=convert(graph), num_threads=1)
    interpreter.allocate_tensors()
    (x,) = seeded_inputs(graph).values()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    interpreter.invoke()
    names = [d["op_name"] for d in interpreter._get_ops_details() if d["op_name"] != "DELEGATE"]
    return interpreter.get_tensor(sink["index"]), names


def _reference(path, dtype="float32"):
    graph = read_graph(path)
    return compute_reference(graph, seeded_inputs(graph), dtype)


@pytest.mark.parametrize("spatial", [11, 12])  # an even map is padded by no rule of LiteRT's
def test_a_float_block_computes_the_same(tmp_path, spatial):
    path = _block(tmp_path / "block.onnx", spatial=spatial)
    y, names = _run(path)
    found = _reference(path).judge([y])
    assert not found.failure
    assert found.relative_l2 < 1e-5
    assert ("PAD" in names) == (spatial == 12)
    assert names.count("RELU") == 0  # all folded
    assert "TRANSPOSE" not in names


def test_a_quantized_block_is_integer_and_computes_the_same(tmp_path):
    quantized = quantize(_block(tmp_path / "block.onnx"))
    y, names = _run(quantized)
    found = _reference(quantized, "int8").judge([y])
    assert not found.failure
    assert not found.remark
    assert names.count("CONV_2D") == 5
    assert names.count("DEPTHWISE_CONV_2D") == 1
    assert names[0] == "QUANTIZE"
    assert names[-1] == "DEQUANTIZE"


def test_zero_points_of_uint8_are_told_as_int8(tmp_path):
    quantized = quantize(_block(tmp_path / "block.onnx"))
    graph = read_graph(quantized)
    notes = read_qdq(graph)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            stored = graph.constants[node.input[2]]
            assert stored.dtype == np.uint8
            assert notes.schemes[node.output[0]].zero_point == int(stored) - 128
    assert all(c.values.dtype in (np.int8, np.int32) for c in notes.constants.values())


def test_asymmetric_padding_and_a_depth_multiplier(tmp_path):
    g = Graph(1, 4, 9, 9)
    wide = g.conv("x", 8, 4, 3, group=4, pads=[0, 1, 2, 0], strides=[2, 1])
    y = g.add("Flatten", g.add("GlobalAveragePool", wide))
    path = g.save(tmp_path / "odd.onnx", y)
    got, names = _run(path)
    assert "PAD" in names
    assert _reference(path).judge([got]).relative_l2 < 1e-5


@pytest.mark.parametrize(
    ("op", "said"),
    [("Erf", "no translation for Erf node 'Erf_0'"), ("HardSigmoid", r"is not relu6\(x \+ 3\)")],
)
def test_what_has_no_counterpart_is_named(tmp_path, op, said):
    g = Graph(1, 4, 9, 9)
    path = g.save(tmp_path / "odd.onnx", g.add(op, "x"))
    with pytest.raises(GraphError, match=said):
        convert(read_graph(path))
