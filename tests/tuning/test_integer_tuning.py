"""Tuning a quantized model, here: the same command, and records for every model of its shapes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.quantize.conftest import separable_network
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.store import Store
from tvm_mobilenet.workflow import compile_model


def quantized(folder: Path, seed: int, high: float) -> Path:
    """Write a small quantized model; seed and bound decide its weights, scales and zero points."""
    source, out = folder / f"float{seed}.onnx", folder / f"int8-{seed}.onnx"
    onnx.save(separable_network(high=high, seed=seed), source)
    options = QuantizeOptions(samples=4, method="minmax")
    quantize_model(source, "random", out=out, options=options, sensitivity=False)
    return out


def test_a_quantized_model_is_tuned_and_its_records_serve_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, logs = quantized(tmp_path, 3, 6.0), tmp_path / "logs"
    report = tune_model(model, trials=24, logs=logs)
    assert report.trials == 24
    assert not report.left_as_computed
    records = Store(logs).read("host").trials
    measured = [record for record in records if record.verdict == "measured"]
    assert {record.dtype for record in records} == {"uint8"}
    assert {record.error for record in measured} == {0.0}
    tasks = {record.family for record in measured}
    assert tasks >= {"int8_conv", "int8_depthwise", "int8_pointwise", "int8_pool", "int8_dense"}
    accepted = {record.family for record in records if record.verdict == "accepted"}
    assert accepted
    other = quantized(tmp_path, 4, 4.0)
    for number, onnx_path in enumerate((model, other)):
        out = tmp_path / f"out{number}"
        manifest = compile_model(onnx_path, out=out, logs=logs).manifest
        tuned = {layer.family for layer in manifest.layers if layer.origin == "tuned"}
        assert tuned == accepted, onnx_path
