"""From training to int8: what the whole way costs on the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.datasets import DIGITS, DIGITS_MODEL, load_dataset
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.qat import train_quantized
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.training.train import train
from tvm_mobilenet.verify.engines import onnx_session
from tvm_mobilenet.workflow import compile_model

pytestmark = [pytest.mark.slow, pytest.mark.torch]

SCANS = 1000


@pytest.fixture(scope="module")
def trained_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    weights = folder / "digits.safetensors"
    train(DIGITS_MODEL, DIGITS, out=weights, epochs=20)
    export_onnx(DIGITS_MODEL, out=folder / "digits.onnx", weights=weights)
    return folder / "digits.onnx"


def scores(onnx: Path, images: np.ndarray) -> np.ndarray:
    session = onnx_session(onnx, threads=1)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def test_int8_keeps_the_accuracy_and_agrees_with_onnx_runtime(
    trained_onnx: Path, tmp_path: Path
) -> None:
    int8 = tmp_path / "digits.int8.onnx"
    report = quantize_model(trained_onnx, DIGITS, out=int8, sensitivity=False)
    assert report.output_snr_db is not None
    assert report.output_snr_db > 25
    held_out = load_dataset(DIGITS, resolution=32).held_out
    images, labels = held_out.inputs(), held_out.labels
    right = {
        path.name: float((scores(path, images).argmax(1) == labels).mean())
        for path in (trained_onnx, int8)
    }
    assert right["digits.int8.onnx"] >= right["digits.onnx"] - 0.003

    scans = load_dataset(DIGITS, resolution=32).train.inputs(range(SCANS))
    expected = scores(int8, scans)
    artifact = compile_model(int8, out=tmp_path / "out")
    (info,) = open_artifact(tmp_path / "out").manifest.inputs
    with LocalExecutor(artifact, threads=1) as executor:
        found = np.concatenate(
            [next(iter(executor.run({info.name: image[None]}).values())) for image in scans]
        )
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.995


def test_training_with_rounding_is_not_worse(trained_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.qat.onnx"
    result = train_quantized(trained_onnx, DIGITS, out=out, epochs=2)
    assert result.held_out_accuracy >= result.calibrated_accuracy
    held_out = load_dataset(DIGITS, resolution=32).held_out
    found = scores(out, held_out.inputs()).argmax(1) == held_out.labels
    assert float(found.mean()) == pytest.approx(result.held_out_accuracy, abs=0.003)
