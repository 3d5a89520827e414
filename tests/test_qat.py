"""Fine-tuning with rounding: the graph in torch is the file, and the file is what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tvm_mobilenet.errors import UnsupportedOpError
from tvm_mobilenet.qat import QdqModule
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.verify.engines import onnx_session

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def int8_onnx(colour_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "colour.int8.onnx"
    options = QuantizeOptions(samples=8)
    quantize_model(colour_onnx, "random", out=path, options=options, sensitivity=False)
    return path


def in_onnx_runtime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnx_session(model.SerializeToString(), threads=1)
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in x])


def step_of(model: onnx.ModelProto) -> float:
    last = next(n for n in model.graph.node if n.output[0] == model.graph.output[0].name)
    (scale,) = (t for t in model.graph.initializer if t.name == last.input[1])
    return float(onnx.numpy_helper.to_array(scale))


def test_the_module_computes_what_the_file_does(int8_onnx: Path) -> None:
    model = onnx.load(int8_onnx)
    x = np.random.default_rng(0).uniform(0, 1, (6, 3, 32, 32)).astype(np.float32)
    module = QdqModule(model).eval()
    with torch.inference_mode():
        found = module(torch.from_numpy(x)).numpy()
    steps = np.abs(found - in_onnx_runtime(model, x)) / step_of(model)
    assert steps.max() <= 1.01
    assert (steps < 0.01).mean() > 0.8


def test_what_was_trained_is_what_is_written(int8_onnx: Path) -> None:
    model = onnx.load(int8_onnx)
    module = QdqModule(model).train()
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (32, 3, 32, 32)).astype(np.float32)
    labels = torch.from_numpy(rng.integers(0, 3, 32))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    written = module.eval().as_onnx()
    onnx.checker.check_model(written, full_check=True)
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in model.graph.node]
    with torch.inference_mode():
        found = module(torch.from_numpy(x)).numpy()
    assert np.abs(found - in_onnx_runtime(model, x)).max() > 3 * step_of(model)
    steps = np.abs(found - in_onnx_runtime(written, x)) / step_of(model)
    assert steps.max() <= 1.01
    assert (steps < 0.01).mean() > 0.8


def test_an_operator_that_cannot_be_trained_is_named(int8_onnx: Path) -> None:
    model = onnx.load(int8_onnx)
    next(n for n in model.graph.node if n.op_type == "Flatten").op_type = "Einsum"
    with pytest.raises(UnsupportedOpError, match="Einsum"):
        QdqModule(model)
