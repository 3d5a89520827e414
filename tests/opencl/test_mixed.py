"""A model of which the processor computes a part, on this machine's OpenCL device and a board's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.predict import predict_model
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.tasks import model_tasks
from tvm_mobilenet.verify import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = pytest.mark.opencl


def sharing(*on_cpu: str) -> TargetSpec:
    target = load_target("opencl-generic")
    assert target.gpu is not None
    gpu = target.gpu.model_copy(update={"on_cpu": on_cpu})
    return target.model_copy(update={"gpu": gpu})


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, a softmax between them, a global pool, a dense layer and a softmax."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(9, 3, 3, 3)),
        "b1": rng.normal(size=9),
        "w2": rng.normal(size=(11, 9, 1, 1)),
        "b2": rng.normal(size=11),
        "w3": rng.normal(size=(11, 7)),
        "b3": rng.normal(size=7),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Softmax", ["r1"], ["s1"], axis=1),
        helper.make_node("Conv", ["s1", "w2", "b2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 10, 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 7))],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    path = tmp_path_factory.mktemp("mixed") / "mixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.fixture(scope="module")
def artifact(device, onnx_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("mixed") / "model"
    return compile_model(onnx_path, target=sharing("dense", "pool", "softmax"), out=out)


def sources(artifact: Artifact) -> str:
    """Return all OpenCL C of a library."""
    import tvm

    (host,) = tvm.runtime.load_module(str(artifact.library_path)).imports
    return "".join(one.inspect_source() for one in host.imports if one.kind == "opencl")


def test_what_is_named_runs_on_the_processor_and_the_rest_on_the_device(artifact: Artifact):
    kernels = [layer.kernel for layer in artifact.manifest.layers]
    written = sources(artifact)
    for kernel in kernels:
        is_on_cpu = kernel.startswith("cpu_") or "softmax" in kernel
        assert (f"{kernel}_kernel" in written) != is_on_cpu, kernel
    assert {"cpu_pool_0", "cpu_dense_1"} <= set(kernels)
    assert sum("softmax" in kernel for kernel in kernels) == 2


def test_it_computes_the_same_here(artifact: Artifact):
    report = verify(artifact.path, inputs=3, drift=True)
    assert report.is_within
    assert report.drift is not None
    assert report.drift.first_departed is None
    with LocalExecutor(artifact) as executor:
        (inputs,) = seeded(artifact.manifest, 1)
        session = ort.InferenceSession(str(artifact.onnx_path))
        wanted = session.run(None, dict(inputs))[0]
        for _ in range(3):
            (found,) = executor.run(inputs).values()
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
        assert (executor.layer_times_ms(inputs, 2) > 0).all()
        assert all(value > 0 for value in executor.times_ms(inputs, 3))


def test_it_computes_the_same_on_a_board(artifact: Artifact, opencl_agent):
    board = connect(opencl_agent.address, timeout_s=60)
    assert verify(artifact.path, inputs=2, drift=True, device=board).is_within
    (inputs,) = seeded(artifact.manifest, 1)
    with board.open(artifact, 1) as there, LocalExecutor(artifact, 1) as here:
        for ours, theirs in zip(
            here.layer_outputs(inputs), there.layer_outputs(inputs), strict=True
        ):
            assert np.array_equal(ours, theirs)
        assert (there.layer_times_ms(inputs, 2) > 0).all()
        assert all(value > 0 for value in there.times_ms(inputs, 3))


def test_one_inference_after_another_leaves_no_memory_behind(artifact: Artifact):
    from tvm_mobilenet.process_memory import resident_bytes

    (inputs,) = seeded(artifact.manifest, 1)
    with LocalExecutor(artifact, 1) as executor:
        for _ in range(200):
            executor.run(inputs)
        before = resident_bytes()
        for _ in range(1000):
            executor.run(inputs)
        assert resident_bytes() - before < 1 << 20


def test_only_the_gpus_kernels_are_predicted_and_tuned(onnx_path: Path):
    target = sharing("dense", "pool")
    predicted = [one.family for one in predict_model(onnx_path, target=target)]
    assert predicted == ["conv", "pointwise"]
    assert [task.family for task in model_tasks(onnx_path, target).tasks] == predicted


def test_nothing_is_named_by_default(onnx_path: Path, tmp_path: Path):
    out = tmp_path / "model"
    artifact = compile_model(onnx_path, target="opencl-generic", out=out)
    kernels = [layer.kernel for layer in artifact.manifest.layers]
    written = sources(artifact)
    assert all(f"{kernel}_kernel" in written for kernel in kernels)


def test_a_name_that_is_none_is_refused(tmp_path: Path):
    shipped = Path("targets/opencl-generic.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(shipped.replace("freq_mhz = 1000", 'freq_mhz = 1000\non_cpu = ["Dense!"]'))
    with pytest.raises(SpecError, match=r"on_cpu"):
        load_target(path)
