"""Every family from its module to a library: fused, computed, and equal to ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.test_compiler import Graph, compare_with_onnx_runtime
from tvm_mobilenet.compiler import compile_onnx, schedule_onnx
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.targets import load_target

QUICK = ("mobilenet_v2_0.35_64", "mobilenet_v3_small_0.5_64", "mobilenet_v4_conv_small_64")
REST = (
    "mobilenet_v2_1.0_224",
    "mobilenet_v2_1.4_96",
    "mobilenet_v3_large_1.0_224",
    "mobilenet_v3_large_0.75_97",
    "mobilenet_v3_large_minimalistic_1.0_96",
    "mobilenet_v3_small_1.0_224",
    "mobilenet_v3_small_minimalistic_0.75_64",
    "mobilenet_v4_conv_small_224",
    "mobilenet_v4_conv_medium_128",
    "mobilenet_v4_conv_large_64",
)
BOARDS = ("rpi4", "x86-64-avx2", "x86-64-avx512-vnni")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("exported")
    paths: dict[str, Path] = {}

    def export(name: str) -> Path:
        if name not in paths:
            paths[name] = folder / f"{name}.onnx"
            export_onnx(name, out=paths[name])
        return paths[name]

    return export


def check_structure(path: Path, target: str) -> None:
    """Check for one fused kernel a convolution, all computed, and nothing between them."""
    scheduled = schedule_onnx(path, load_target(target))
    flow = Dataflow(scheduled.mod)
    assert sum(is_call(b.value, "permute_dims") for b in flow.bindings) == 0
    assert [layer.kernel for layer in scheduled.layers if layer.origin != "computed"] == []
    graph = onnx.load(str(path)).graph
    operators = Counter(node.op_type for node in graph.node)
    families = Counter(layer.family for layer in scheduled.layers)
    assert set(families) <= {
        "conv", "separable", "depthwise", "pointwise", "gated", "pool", "dense", "cascade"
    }  # fmt: skip
    convolutions = sum(len(layer.schedule.get("tiles", ())) for layer in scheduled.layers) + sum(
        count * (2 if family == "separable" else 1)
        for family, count in families.items()
        if family not in ("pool", "dense", "cascade")
    )
    assert convolutions == operators["Conv"]
    assert families["gated"] == operators["HardSigmoid"] == operators["Mul"]
    assert families["pool"] == operators["ReduceMean"]
    assert families["dense"] == operators["Gemm"]
    # Each node is in one kernel: activations, residuals and gates among them.
    counted = Counter(node for layer in scheduled.layers for node in layer.onnx_nodes)
    assert set(counted.values()) == {1}
    views = {node.name for node in graph.node if node.op_type == "Reshape"}
    assert {node.name for node in graph.node} - set(counted) <= views
    # What is before an activation is no kernel's result, but inside one.
    computed = {layer.tensor for layer in scheduled.layers}
    for node in graph.node:
        if node.op_type in ("Relu", "Clip", "HardSwish", "HardSigmoid"):
            assert node.input[0] not in computed


@pytest.mark.parametrize("name", QUICK)
def test_every_convolution_is_one_fused_kernel(exported, name: str) -> None:
    check_structure(exported(name), "host")


@pytest.mark.parametrize("name", QUICK)
def test_a_small_one_equals_onnx_runtime(exported, tmp_path: Path, name: str) -> None:
    compare_with_onnx_runtime(exported(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
@pytest.mark.parametrize("target", ["host", "rpi4"])
def test_every_convolution_of_the_rest_is_one_fused_kernel(exported, name: str, target) -> None:
    check_structure(exported(name), target)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_the_rest_equal_onnx_runtime(exported, tmp_path: Path, name: str) -> None:
    compare_with_onnx_runtime(exported(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", BOARDS)
@pytest.mark.parametrize("name", QUICK)
def test_compiles_for_other_processors(exported, tmp_path: Path, name: str, target: str) -> None:
    library = compile_onnx(exported(name), load_target(target), tmp_path / "model.so")
    assert library.library_path.stat().st_size > 100_000
    assert all(layer.origin == "computed" for layer in library.layers)


@pytest.mark.slow
def test_a_batch_of_pictures_is_gated_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "batch.onnx"
    export_onnx("mobilenet_v3_small_0.5_64", out=path, batch=3)
    compare_with_onnx_runtime(path, tmp_path)


def classified(graph: Graph, x: str, channels: int) -> str:
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return graph.add("Gemm", x, graph.weights(channels, 4), graph.weights(4))


def test_other_spellings_are_fused_too(tmp_path: Path) -> None:
    """What timm's own modules and older exporters write for V3."""
    graph = Graph(2, 8, 9, 9)
    three, six = graph.constant(np.float32(3)), graph.constant(np.float32(6))
    zero = graph.constant(np.float32(0))

    def relu6(x: str) -> str:
        return graph.add("Clip", x, zero, six)

    def hard_swish(x: str) -> str:
        return graph.add("Div", graph.add("Mul", x, relu6(graph.add("Add", x, three))), six)

    x = hard_swish(graph.conv("x", 16, 8, 1))
    y = hard_swish(graph.batch_norm(graph.conv(x, 16, 16, 5, group=16, pads=[2] * 4), 16))
    gate = graph.add("Relu", graph.conv(graph.add("GlobalAveragePool", y), 8, 16, 1))
    gate = relu6(graph.add("Add", graph.conv(gate, 16, 8, 1), three))
    gated = graph.add("Mul", graph.add("Div", gate, six), y)
    z = classified(graph, graph.add("Add", graph.conv(gated, 16, 16, 1), x), 16)
    library = compare_with_onnx_runtime(graph.save(tmp_path / "o.onnx", z), tmp_path)
    assert [layer.family for layer in library.layers] == [
        "conv", "depthwise", "pool", "pointwise", "pointwise", "gated", "pool", "dense"
    ]  # fmt: skip


def test_a_dense_layer_takes_over_hard_swish_and_hard_sigmoid(tmp_path: Path) -> None:
    graph = Graph(3, 24)
    x = graph.add("Gemm", "x", graph.weights(24, 16), graph.weights(16))
    x = graph.add("HardSwish", x)
    x = graph.add("Gemm", x, graph.weights(16, 8), graph.weights(8))
    x = graph.add("HardSigmoid", x, alpha=0.2, beta=0.5)
    library = compare_with_onnx_runtime(graph.save(tmp_path / "d.onnx", x), tmp_path)
    assert [layer.family for layer in library.layers] == ["dense", "dense"]


def test_a_gate_that_no_convolution_reads_falls_back_by_name(tmp_path: Path) -> None:
    graph = Graph(1, 8, 5, 5)
    x = graph.add("Relu", graph.conv("x", 8, 8, 1))
    gate = graph.conv(graph.add("GlobalAveragePool", x), 8, 8, 1)
    y = classified(graph, graph.add("Mul", x, graph.add("HardSigmoid", gate)), 8)
    library = compare_with_onnx_runtime(graph.save(tmp_path / "g.onnx", y), tmp_path)
    assert [layer.family for layer in library.layers] == [
        "conv", "pool", "pointwise", "fallback", "pool", "dense"
    ]  # fmt: skip


def test_a_pool_that_keeps_its_axes_is_not_the_one_that_drops_them(tmp_path: Path) -> None:
    graph = Graph(1, 8, 5, 5)
    axes = graph.constant(np.array([2, 3]))
    kept = graph.add("ReduceMean", "x", axes, keepdims=1)
    dropped = graph.add("ReduceMean", "x", axes, keepdims=0)
    path = graph.save(tmp_path / "p.onnx", kept, dropped, opset=18)
    compare_with_onnx_runtime(path, tmp_path)
