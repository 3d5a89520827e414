"""What every test may rely on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# One computing thread for each test process: the processes themselves already fill the machine.
# Set before numpy, torch or TVM is imported anywhere.
for _name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.fixture(scope="session", autouse=True)
def no_logs_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the user has tuned out of the tests, and what they tune out of the user's logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected files from the results"
    )


@pytest.fixture(scope="session")
def colour_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose right answer is known: which colour is a picture mostly of?

    Two convolutions that pass three channels on, nearly, and compute something random beside them;
    a global average; a classifier that reads the three. The file carries the preprocessing and the
    class names `red`, `green`, `blue`, and needs no torch.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from tvm_mobilenet.onnx_file import METADATA_KEY, ExportMetadata
    from tvm_mobilenet.records import ModelOrigin, Preprocessing

    rng = np.random.default_rng(5)

    def noise(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.02, shape).astype(np.float32)

    weights = {name: noise(*shape) for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 1, 3, 3)))}
    weights |= {"w3": noise(8, 8, 1, 1), "w4": noise(3, 8), "b4": noise(3)}
    for channel in range(3):
        weights["w1"][channel, channel, 1, 1] += 1
        weights["w2"][channel, 0, 1, 1] += 1
        weights["w3"][channel, channel] += 1
        weights["w4"][channel, channel] += 8
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "stem", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "stem_relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "depthwise", pads=[1] * 4, group=8),
        helper.make_node("Relu", ["c"], ["d"], "depthwise_relu"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "pointwise"),
        helper.make_node("Relu", ["e"], ["f"], "pointwise_relu"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["h"], "flatten"),
        helper.make_node("Gemm", ["h", "w4", "b4"], ["y"], "classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    metadata = ExportMetadata(
        origin=ModelOrigin(name="colour", weights="colour.onnx", is_random=False, num_classes=3),
        preprocessing=Preprocessing(resize=32, crop=32, mean=(0, 0, 0), std=(1, 1, 1)),
        class_names=("red", "green", "blue"),
    )
    helper.set_model_props(model, {METADATA_KEY: metadata.model_dump_json()})
    path = tmp_path_factory.mktemp("colour") / "colour.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def colour_dir(colour_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colour_onnx` compiled for this machine; look, do not touch."""
    from tvm_mobilenet.workflow import compile_model

    path = tmp_path_factory.mktemp("artifact") / "colour"
    compile_model(colour_onnx, out=path)
    return path
