"""Small float networks to quantize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Separable = Callable[..., onnx.ModelProto]


def separable_network(
    *, high: float | None = None, spread: float = 0.0, seed: int = 3
) -> onnx.ModelProto:
    """A stem, a depthwise and two pointwise convolutions, a mean and a classifier.

    Args:
        high: of the activations: None for ReLU, 6 for ReLU6.
        spread: standard deviation of the logarithm of what each channel between the convolutions
            is multiplied by, and divided by again: what training leaves behind in depthwise layers.
        seed: of the weights.
    """
    rng = np.random.default_rng(seed)
    channels = 16
    scale = np.exp(rng.normal(0, spread, (3, channels))).astype(np.float32)
    weights = {
        "w0": rng.normal(0, 0.3, (channels, 3, 3, 3)),
        "w1": rng.normal(0, 0.3, (channels, 1, 3, 3)),
        "w2": rng.normal(0, 0.2, (channels, channels, 1, 1)),
        "w3": rng.normal(0, 0.2, (channels, channels, 1, 1)),
        "w4": rng.normal(0, 0.3, (10, channels)),
        "b0": rng.normal(0, 0.1, channels),
        "b1": rng.normal(0, 0.1, channels),
        "b2": rng.normal(0, 0.1, channels),
        "b4": rng.normal(0, 0.1, 10),
    }
    for layer in range(3):
        weights[f"w{layer}"] = weights[f"w{layer}"] * scale[layer].reshape(-1, 1, 1, 1)
        weights[f"b{layer}"] = weights[f"b{layer}"] * scale[layer]
        shape = (-1, 1, 1, 1) if layer == 0 else (1, -1, 1, 1)
        weights[f"w{layer + 1}"] = weights[f"w{layer + 1}"] / scale[layer].reshape(shape)
    constants: dict[str, np.ndarray] = {
        name: value.astype(np.float32) for name, value in weights.items()
    }
    constants["axes"] = np.asarray([2, 3], np.int64)
    constants |= {"low": np.asarray(0, np.float32), "high": np.asarray(high or 0, np.float32)}

    def act(name: str) -> onnx.NodeProto:
        if high is None:
            return helper.make_node("Relu", [name], [f"{name}a"], f"{name}a")
        return helper.make_node("Clip", [name, "low", "high"], [f"{name}a"], f"{name}a")

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["y0"], "stem", pads=[1] * 4, strides=[2, 2]),
        act("y0"),
        helper.make_node("Conv", ["y0a", "w1", "b1"], ["y1"], "dw", pads=[1] * 4, group=channels),
        act("y1"),
        helper.make_node("Conv", ["y1a", "w2", "b2"], ["y2"], "pw"),
        act("y2"),
        helper.make_node("Conv", ["y2a", "w3"], ["y3"], "last"),
        act("y3"),
        helper.make_node("ReduceMean", ["y3a", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "w4", "b4"], ["y"], "classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "separable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def separable() -> Separable:
    return separable_network


@pytest.fixture
def images() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(8)
    return [{"x": rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32)} for _ in range(12)]


@pytest.fixture
def separable_onnx(separable: Separable, tmp_path: Path) -> Path:
    path = tmp_path / "separable.onnx"
    onnx.save(separable(high=6.0, spread=1.0), path)
    return path
