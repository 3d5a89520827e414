"""Running command lines inside the test's own process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tvm_mobilenet.cli.app import run_command


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def fails(self, code: int) -> str:
        """Check that this ended with `code` and one line of error; return that line."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.strip().splitlines()
        assert lines, "nothing was said"
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("error: ")


Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    logger = logging.getLogger("tvm_mobilenet")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.fixture
def cli(capfd, monkeypatch) -> Cli:
    """Run a command line given as words; what it wrote and its exit code come back."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = run_command([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory) -> Path:
    """A convolution with an activation, a global pool and a dense layer, as a user's ONNX file."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    save_tiny_onnx(path)
    return path


def save_tiny_onnx(path: Path, *, batch: int | str = 1, activation: str = "Relu") -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(8, np.float32),
        "dense": rng.normal(size=(8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], name="conv_1", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["conv"], ["active"], name="active_1"),
        helper.make_node("GlobalAveragePool", ["active"], ["pool"], name="pool_1"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat_1"),
        helper.make_node("MatMul", ["flat", "dense"], ["y"], name="dense_1"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def artifact_dir(tmp_path_factory, tiny_onnx: Path) -> Path:
    """The tiny network, compiled for this machine; look, do not touch."""
    from tvm_mobilenet.workflow import compile_model

    path = tmp_path_factory.mktemp("artifact") / "tiny"
    compile_model(tiny_onnx, out=path)
    return path


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A MobileNet with random weights, compiled for this machine; look, do not touch."""
    from tvm_mobilenet.workflow import compile_model

    path = tmp_path_factory.mktemp("model") / "mobilenet"
    compile_model("mobilenet_v1_0.25_32", out=path, num_classes=10)
    return path


@pytest.fixture
def labelled_pictures(tmp_path: Path) -> Path:
    """Ten dark and ten bright pictures, in a folder for each kind."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"
