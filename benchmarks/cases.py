"""The models of a comparison: the ONNX file that every engine gets, and our library made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.onnx_graph import GraphError, OnnxGraph, read_graph, seeded_inputs
from benchmarks.qdq import read_qdq
from tvm_mobilenet.detection.onnx_function import has_detections, without_detections
from tvm_mobilenet.errors import TvmMobilenetError

__all__ = ["Case", "model_name", "onnx_file", "prepare_case", "quantize"]

_CALIBRATION_INPUTS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One model to compare on."""

    name: str
    onnx: Path
    artifact: Path | None
    absence: str = ""
    """Why there is no artifact."""


def model_name(model: str) -> str:
    """Return what a model is called in the table: a file is called after itself."""
    return Path(model).stem if model.endswith(".onnx") else model


def prepare_case(
    model: str,
    folder: Path,
    *,
    dtype: str = "float32",
    target: str = "host",
    ours: Path | None = None,
    use_logs: bool = True,
    heads: bool = False,
) -> Case:
    """Find or make the ONNX file and our library of one model; `folder` takes what is made.

    With `heads` a detector is cut before its suppression, which most engines have no word for.

    Raises:
        GraphError: there is no such file, or it is not of that dtype.
    """
    name = model_name(model)
    if ours is not None:
        artifact = _artifact_in(ours, name)
        path = artifact / "model.onnx" if artifact else None
        if path is None or not path.is_file():
            path = onnx_file(model, folder, dtype)
        return Case(name, path, artifact, f"{ours} holds no artifact of {name}")
    path = onnx_file(model, folder, dtype)
    if heads:
        path, name = _cut(path, folder, name), f"{name} (heads)"
    artifact = folder / name
    try:
        from tvm_mobilenet.workflow import compile_model

        print(f"compiling {name} for {target}", file=sys.stderr)
        compile_model(path, target=target, out=artifact, use_logs=use_logs)
    except (TvmMobilenetError, ImportError) as err:
        return Case(name, path, None, f"not compiled: {err}")
    return Case(name, path, artifact)


def onnx_file(model: str, folder: Path, dtype: str = "float32") -> Path:
    """Return the ONNX file of a model: the user's, or one exported, and for int8 quantized.

    Raises:
        GraphError: there is no such file, or it is not of that dtype.
    """
    if model.endswith(".onnx"):
        if not (path := Path(model)).is_file():
            raise GraphError(f"{path}: no such file")
        _check_dtype(path, dtype)
        return path
    from tvm_mobilenet.export import export_onnx

    print(f"exporting {model} with random weights (seed 0)", file=sys.stderr)
    path = Path(export_onnx(model, out=folder / f"{model}.onnx").path)
    return path if dtype == "float32" else quantize(path)


def _cut(path: Path, folder: Path, name: str) -> Path:
    model = onnx.load(path)
    if not has_detections(model):
        raise GraphError(f"{path}: it is no detector, which --heads is for")
    cut = folder / f"{name}.heads.onnx"
    onnx.save(without_detections(model), cut)
    return cut


def _check_dtype(path: Path, dtype: str) -> None:
    quantized = read_qdq(read_graph(path)).is_quantized
    if quantized and dtype != "int8":
        raise GraphError(f"{path}: the file is quantized; compare it with --dtype int8")
    if not quantized and dtype == "int8":
        raise GraphError(
            f"{path}: no QuantizeLinear in it, which --dtype int8 needs; quantize it first, "
            "or name a model instead of a file"
        )


def quantize(path: Path) -> Path:
    """Quantize a file with ONNX Runtime's quantizer: uint8 tensors, int8 weights by channel."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped upstream
        """Seeded inputs, one after the other."""

        def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
            self._inputs = inputs

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    print(f"quantizing {path.stem} on {_CALIBRATION_INPUTS} random inputs", file=sys.stderr)
    output = path.with_suffix(".int8.onnx")
    quantize_static(
        path,
        output,
        Reader(_calibration_inputs(read_graph(path))),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return output


def _calibration_inputs(graph: OnnxGraph) -> Iterator[dict[str, np.ndarray]]:
    # Not the inputs that are compared on, whose seed is 0 unless told.
    return (seeded_inputs(graph, seed=1000 + i) for i in range(_CALIBRATION_INPUTS))


def _artifact_in(folder: Path, name: str) -> Path | None:
    """Return the artifact of model `name`: `folder` itself, or a folder in it."""
    for candidate in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        manifest = candidate / "manifest.json"
        if manifest.is_file():
            described = json.loads(manifest.read_text(encoding="utf-8"))["model"]["name"]
            if name in (described, candidate.name):
                return candidate
    return None
