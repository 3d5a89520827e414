"""The implementations that a compiled model is compared with: ONNX Runtime and PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.detection.outputs import as_outputs, is_detector
from tvm_mobilenet.detection.suppression import suppress
from tvm_mobilenet.errors import ArtifactError, UsageError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.inputs import in_onnx_layout
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.records import ModelOrigin, TensorInfo

__all__ = ["NotComparableError", "OnnxRuntime", "PyTorch", "onnx_file", "onnx_session"]

Array = npt.NDArray[Any]

_RANDOM = re.compile(r"random \(seed (\d+)\)")


class NotComparableError(Exception):
    """There is no PyTorch model to compare with; the text says why."""


def onnx_session(model: Path | bytes, threads: int | None = None, *, optimize: bool = True) -> Any:
    """Open an ONNX model in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # On AVX2 without VNNI its ordinary kernels for uint8 times int8 saturate at 16 bits; this picks
    # the ones that do not.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxRuntime:
    """The artifact's own ONNX file in ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        self._session = onnx_session(onnx_file(artifact), threads)
        self._inputs = artifact.manifest.inputs
        self._outputs = artifact.manifest.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output once; feature maps come back in NCHW."""
        feeds = {info.name: in_onnx_layout(inputs[info.name], info.layout) for info in self._inputs}
        names = [info.name for info in self._outputs]
        return dict(zip(names, self._session.run(names, feeds), strict=True))


def onnx_file(artifact: Artifact) -> Path:
    """Return the artifact's ONNX file.

    Raises:
        ArtifactError: it was not kept.
    """
    if artifact.onnx_path is None:
        raise ArtifactError(
            f"artifact {artifact.path}: it holds no ONNX file to compare with; compile the model "
            "again without --no-onnx"
        )
    return artifact.onnx_path


class PyTorch:
    """The model of ours that the artifact was made from, built again with the same weights.

    Raises:
        NotComparableError: the model is not ours, or its weights are not at hand.
        UsageError: `weights` is not the file that the artifact was made from.
    """

    name = "pytorch"

    def __init__(self, artifact: Artifact, weights: Path | None = None) -> None:
        from tvm_mobilenet.models.weights import create_model

        origin = artifact.manifest.model
        _require_ours(origin)
        (self._input,) = artifact.manifest.inputs
        self._outputs = artifact.manifest.outputs
        if origin.is_random:
            if weights is not None:
                raise UsageError(
                    f"weights {weights}: the artifact was made with {origin.weights}; "
                    "leave the file out"
                )
            match = _RANDOM.fullmatch(origin.weights)
            if match is None:
                raise NotComparableError(f"its weights, {origin.weights!r}, cannot be drawn again")
            created = create_model(origin.name, seed=int(match[1]), num_classes=origin.num_classes)
        else:
            created = create_model(origin.name, weights=_weights_of(artifact, weights))
        self._module = created.module.eval()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output once."""
        import torch

        x = in_onnx_layout(inputs[self._input.name], self._input.layout)
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(x))
        if is_detector(self._outputs):
            offsets, logits = (each.numpy() for each in outputs)
            return _detections(self._module, offsets, logits, x.shape[2])
        return {self._outputs[0].name: outputs.numpy()}


def _detections(module: Any, offsets: Array, logits: Array, resolution: int) -> dict[str, Array]:
    limits = module.suppression()
    found = suppress(offsets[0], logits[0], module.default_boxes(resolution), limits)
    return as_outputs(found, limits.detections)


def _require_ours(origin: ModelOrigin) -> None:
    try:
        get_model_spec(origin.name)
    except UsageError as err:
        raise NotComparableError(f"{origin.name} is not a model of tvm-mobilenet's") from err
    if not origin.is_random and origin.weights_sha256 is None:
        raise NotComparableError(f"{origin.name} came as an ONNX file, its PyTorch weights unknown")


def _weights_of(artifact: Artifact, weights: Path | None) -> Path:
    """Return the weight file: the one given, or one of its name and hash beside the artifact."""
    origin = artifact.manifest.model
    if weights is not None:
        found = sha256_of(weights)
        if found != origin.weights_sha256:
            raise UsageError(
                f"weights {weights}: not the file that the artifact was made from ({origin.weights}"
                f", sha256 {str(origin.weights_sha256)[:12]}...); give that one, or leave it out"
            )
        return weights
    for folder in (Path.cwd(), artifact.path, artifact.path.parent):
        candidate = folder / Path(origin.weights).name
        if candidate.is_file() and sha256_of(candidate) == origin.weights_sha256:
            return candidate
    raise NotComparableError(
        f"its weight file {origin.weights} is neither here nor beside the artifact; "
        "give it with --weights"
    )


def outputs_in_onnx_layout(
    outputs: Mapping[str, Array], infos: Sequence[TensorInfo]
) -> dict[str, Array]:
    """Return a compiled model's outputs in the order that the references use."""
    return {info.name: in_onnx_layout(outputs[info.name], info.layout) for info in infos}
