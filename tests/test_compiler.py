"""From ONNX to a library: right, fused, the same every time; and what is refused."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet._tvm import relax, tvm
from tvm_mobilenet.compiler import compile_onnx, schedule_onnx
from tvm_mobilenet.errors import OnnxFileError, SpecError, ToolchainError, UnsupportedOpError
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.models.spec import list_models
from tvm_mobilenet.targets import load_target

HOST = load_target("host")


def run_library(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    result = vm["main"](*(tvm.runtime.tensor(x) for x in inputs))
    outputs = [result] if hasattr(result, "numpy") else list(result)
    return [output.numpy() for output in outputs]


def compare_with_onnx_runtime(model_path: Path, tmp_path: Path, seed: int = 0) -> Any:
    """Compile, run beside ONNX Runtime on normal inputs, compare; return the compiled library."""
    library = compile_onnx(model_path, HOST, tmp_path / "model.so")
    session = onnxruntime.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    inputs = {i.name: rng.standard_normal(i.shape, dtype="float32") for i in session.get_inputs()}
    expected = session.run(None, inputs)
    found = run_library(library.library_path, [inputs[i.name] for i in library.inputs])
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        scale = max(float(np.abs(theirs).max()), 1e-3)
        assert float(np.abs(mine - theirs).max()) <= 1e-4 * scale
    return library


class Graph:
    """A small ONNX graph, written node by node."""

    def __init__(self, *input_shape: int) -> None:
        self.rng = np.random.default_rng(11)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant((self.rng.standard_normal(shape) * scale).astype("float32"))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes)
        )
        return name

    def conv(self, x: str, o: int, i: int, k: int, *, bias: bool = True, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        inputs = [x, self.weights(o, i // groups, k, k)]
        if bias:
            inputs.append(self.weights(o))
        return self.add("Conv", *inputs, **attributes)

    def batch_norm(self, x: str, channels: int) -> str:
        positive = np.abs(self.rng.standard_normal(channels)).astype("float32") + 0.5
        return self.add(
            "BatchNormalization",
            x,
            self.weights(channels),
            self.weights(channels),
            self.weights(channels),
            self.constant(positive),
        )

    def save(self, path: Path, *outputs: str, opset: int = 17) -> Path:
        values = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, values, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9
        )
        model = onnx.shape_inference.infer_shapes(model)
        onnx.save(model, str(path))
        return path


@functools.cache
def exported(folder: Path, name: str) -> Path:
    path = folder / f"{name}.onnx"
    export_onnx(name, out=path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# -- structure ---------------------------------------------------------------------------------

TABLE = [row.name for row in list_models() if row.name.startswith("mobilenet_v1")]


@pytest.mark.parametrize("name", [TABLE[0], TABLE[-1]])
@pytest.mark.parametrize("target", ["host", "rpi4"])
def test_every_convolution_is_one_fused_kernel(models: Path, name: str, target: str) -> None:
    check_structure(exported(models, name), target)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_every_convolution_of_the_table_is_one_fused_kernel(models: Path, name: str) -> None:
    check_structure(exported(models, name), "host")


def check_structure(path: Path, target: str) -> None:
    scheduled = schedule_onnx(path, load_target(target))
    flow = Dataflow(scheduled.mod)
    # The image is read as NCHW by the first kernel, and a pooled feature needs no transpose.
    assert not any(is_call(b.value, "permute_dims") for b in flow.bindings)
    nodes = Counter(node for layer in scheduled.layers for node in layer.onnx_nodes)
    graph = onnx.load(str(path)).graph
    convolutions = {n.name for n in graph.node if n.op_type == "Conv"}
    assert len(convolutions) == 27
    assert all(nodes[name] == 1 for name in convolutions)
    families = Counter(layer.family for layer in scheduled.layers)
    # 27 convolutions: the stem, and 13 pairs that are one kernel or two, or in a cascade.
    fused = {"conv": 1, "separable": 2, "depthwise": 1, "pointwise": 1, "pool": 0, "dense": 0}
    assert set(families) <= {*fused, "cascade"}
    stages = sum(len(layer.schedule.get("tiles", ())) for layer in scheduled.layers)
    assert stages + sum(fused.get(family, 0) * n for family, n in families.items()) == 27
    assert families["pool"] == families["dense"] == 1
    # Bias and activation are in the kernels: what a kernel computes is the tensor after ReLU6.
    clips = {n.output[0] for n in graph.node if n.op_type == "Clip"}
    for layer in scheduled.layers:
        if layer.family not in ("pool", "dense"):
            assert layer.tensor in clips
    assert all(layer.origin == "computed" for layer in scheduled.layers)
    assert sum(layer.macs for layer in scheduled.layers) > 0


# -- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128", "mobilenet_v1_0.75_96"])
def test_mobilenet_equals_onnx_runtime(models: Path, tmp_path: Path, name: str) -> None:
    compare_with_onnx_runtime(exported(models, name), tmp_path)


@pytest.mark.parametrize("resolution", [33, 100, 225])
def test_resolutions_off_the_table(models: Path, tmp_path: Path, resolution: int) -> None:
    compare_with_onnx_runtime(exported(models, f"mobilenet_v1_0.25_{resolution}"), tmp_path)


def test_widths_off_the_table(models: Path, tmp_path: Path) -> None:
    compare_with_onnx_runtime(exported(models, "mobilenet_v1_0.37_64"), tmp_path)


def test_batch_of_three(tmp_path: Path) -> None:
    path = tmp_path / "batch.onnx"
    export_onnx("mobilenet_v1_0.25_32", out=path, batch=3)
    compare_with_onnx_runtime(path, tmp_path)


def test_residual_network_with_batch_norms(tmp_path: Path) -> None:
    graph = Graph(1, 3, 17, 17)
    x = graph.add("Relu", graph.batch_norm(graph.conv("x", 24, 3, 3, bias=False), 24))
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.add("Relu", graph.batch_norm(graph.conv(x, 24, 24, 3, pads=[1] * 4), 24))
    y = graph.batch_norm(graph.conv(y, 24, 24, 1, bias=False), 24)
    x = graph.add("Relu", graph.add("Add", x, y))
    x = graph.add("GlobalAveragePool", x)
    x = graph.add("Flatten", x)
    x = graph.add("Gemm", x, graph.weights(24, 10), graph.weights(10))
    library = compare_with_onnx_runtime(graph.save(tmp_path / "r.onnx", x), tmp_path)
    # The last addition and its ReLU are in the kernel of the convolution before them.
    fused = [layer for layer in library.layers if any("Add" in n for n in layer.onnx_nodes)]
    assert [layer.family for layer in fused] == ["pointwise"]
    assert any("Relu" in node for node in fused[0].onnx_nodes)


def test_operators_around_the_convolutions(tmp_path: Path) -> None:
    graph = Graph(1, 8, 12, 12)
    x = graph.add("HardSwish", graph.conv("x", 16, 8, 3, auto_pad="SAME_UPPER", strides=[2, 2]))
    pads = graph.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1], dtype="int64"))
    x = graph.conv(graph.add("Pad", x, pads), 16, 16, 3, group=4)
    x = graph.add("HardSigmoid", x)
    x = graph.add("Concat", x, graph.add("Sigmoid", x), axis=1)
    x = graph.add("AveragePool", x, kernel_shape=[2, 2])
    six = graph.constant(np.float32(0.6))
    clipped = graph.add("Clip", graph.conv(x, 7, 32, 1), "", six)
    library = compare_with_onnx_runtime(graph.save(tmp_path / "o.onnx", clipped), tmp_path)
    # Four groups are no family's; they still compile, and the record says so.
    assert any(layer.origin == "fallback" for layer in library.layers)


def test_upper_bound_below_the_lower_one(tmp_path: Path) -> None:
    """ONNX says that the upper bound wins; so does the kernel that takes both over."""
    graph = Graph(1, 4, 5, 5)
    low, high = graph.constant(np.float32(1)), graph.constant(np.float32(-1))
    y = graph.add("Clip", graph.conv("x", 4, 4, 1), low, high)
    compare_with_onnx_runtime(graph.save(tmp_path / "c.onnx", y), tmp_path)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    graph = Graph(1, 4, 6, 6)
    graph.inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 6, 6]))
    first = graph.add("Relu", graph.conv("x", 8, 4, 3, pads=[1] * 4))
    second = graph.add("Add", first, graph.conv("z", 8, 4, 1))
    path = graph.save(tmp_path / "m.onnx", second, first)
    library = compare_with_onnx_runtime(path, tmp_path)
    assert [i.name for i in library.inputs] == ["x", "z"]
    assert [o.name for o in library.outputs] == [second, first]


def test_old_operator_set(tmp_path: Path) -> None:
    graph = Graph(1, 4, 6, 6)
    y = graph.add("Clip", graph.conv("x", 8, 4, 3), min=0.0, max=6.0)
    values = [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 8, 4, 4])]
    onnx_graph = helper.make_graph(graph.nodes, "g", graph.inputs, values, graph.constants)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=6)
    path = tmp_path / "old.onnx"
    onnx.save(model, str(path))
    compare_with_onnx_runtime(path, tmp_path)


# -- repeatable --------------------------------------------------------------------------------


def test_equal_inputs_give_equal_bytes(models: Path, tmp_path: Path) -> None:
    path = exported(models, "mobilenet_v1_0.25_32")
    contents = []
    for name in ("one.so", "two.so"):
        compile_onnx(path, HOST, tmp_path / name, description=lambda _: "{}")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


# -- refused -----------------------------------------------------------------------------------


def test_unknown_operator_is_named_with_its_node(tmp_path: Path) -> None:
    graph = Graph(1, 4, 6, 6)
    y = graph.add("Det", graph.conv("x", 8, 4, 3))
    path = graph.save(tmp_path / "det.onnx", y)
    with pytest.raises(UnsupportedOpError, match=r"Det.*Det_1") as caught:
        compile_onnx(path, HOST, tmp_path / "m.so")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.so").exists()


def test_control_flow_is_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value_float=1.0)],
        "b",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    node = helper.make_node(
        "If", ["c"], ["out"], name="choice", then_branch=branch, else_branch=branch
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "if.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        str(path),
    )
    with pytest.raises((UnsupportedOpError, OnnxFileError), match=r"If|shape"):
        compile_onnx(path, HOST, tmp_path / "m.so")


def test_dynamic_batch_is_refused(tmp_path: Path) -> None:
    graph = Graph(1, 4, 6, 6)
    y = graph.conv("x", 8, 4, 3)
    path = graph.save(tmp_path / "d.onnx", y)
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(path))
    with pytest.raises(OnnxFileError, match="batch"):
        compile_onnx(path, HOST, tmp_path / "m.so")


def test_missing_linker_is_named(models: Path, tmp_path: Path) -> None:
    path = exported(models, "mobilenet_v1_0.25_32")
    with pytest.raises(ToolchainError, match="no-such-compiler"):
        compile_onnx(path, HOST, tmp_path / "m.so", compiler="no-such-compiler")
    assert not (tmp_path / "m.so").exists()


def test_resolution_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        export_onnx("mobilenet_v1_0.25_0", out=tmp_path / "x.onnx")
