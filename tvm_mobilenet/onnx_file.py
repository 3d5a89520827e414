"""Read an ONNX file, ours or a user's, into a record. Imports neither torch nor tvm.

What an exported file of ours knows besides the graph (origin, preprocessing, class names) travels
in its `metadata_props` under one key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tvm_mobilenet.errors import OnnxFileError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.records import (
    ClassList,
    ExportedModel,
    ModelOrigin,
    Preprocessing,
    Record,
    TensorInfo,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["FORMAT_VERSION", "METADATA_KEY", "ExportMetadata", "read_exported"]

FORMAT_VERSION = 1
# 1: the first.

METADATA_KEY = "tvm_mobilenet"
_IMAGE_RANK = 4


class ExportMetadata(Record):
    """What an exported file says about itself, beside the graph."""

    format_version: int = FORMAT_VERSION
    origin: ModelOrigin
    preprocessing: Preprocessing | None = None
    class_names: ClassList | None = None


def read_exported(path: Path | str) -> ExportedModel:
    """Read and check an ONNX file.

    A file that was not exported here has no preprocessing and no class names; its origin is named
    after the file.

    Raises:
        OnnxFileError: the file is missing, damaged or invalid, or a shape in it is not fixed.
    """
    path = Path(path)
    model = _load(path)
    metadata = _metadata(path, model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = _tensors(path, "input", (i for i in model.graph.input if i.name not in constants))
    outputs = _tensors(path, "output", model.graph.output)
    if not outputs:
        raise OnnxFileError(f"ONNX file {path}: the graph has no output")
    return ExportedModel(
        path=str(path),
        sha256=sha256_of(path),
        origin=metadata.origin if metadata else _foreign_origin(path, outputs),
        inputs=inputs,
        outputs=outputs,
        preprocessing=metadata.preprocessing if metadata else None,
        class_names=metadata.class_names if metadata else None,
    )


def _load(path: Path) -> onnx.ModelProto:
    """Read a file, check it and work out the shapes of its outputs."""
    import onnx  # half a second that `--help` does not have
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise OnnxFileError(f"ONNX file {path}: {found}")
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise OnnxFileError(f"ONNX file {path}: it holds no network; export it again")
        # Shapes first: the checker refuses outputs without one, which exporters do leave open.
        model = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
        onnx.checker.check_model(model)
        return model
    except DecodeError as err:
        raise OnnxFileError(
            f"ONNX file {path}: the file is damaged, or no ONNX; export or copy it again"
        ) from err
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        OSError,
        ValueError,
        RuntimeError,
    ) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise OnnxFileError(f"ONNX file {path}: it is not valid: {reason[:200]}") from err


def _metadata(path: Path, model: onnx.ModelProto) -> ExportMetadata | None:
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in texts:
        return None
    try:
        fields = json.loads(texts[METADATA_KEY])
        version = fields.get("format_version")
        if version == FORMAT_VERSION:
            return ExportMetadata.model_validate(fields)
    except (ValueError, AttributeError, ValidationError) as err:
        raise OnnxFileError(
            f"ONNX file {path}: its {METADATA_KEY!r} metadata is damaged; export it again"
        ) from err
    raise OnnxFileError(
        f"ONNX file {path}: its metadata has format version {version!r}, but this program reads "
        f"{FORMAT_VERSION}; export it again"
    )


def _tensors(
    path: Path, role: str, values: Iterable[onnx.ValueInfoProto]
) -> tuple[TensorInfo, ...]:
    return tuple(_tensor(path, role, value) for value in values)


def _tensor(path: Path, role: str, value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    if not value.type.HasField("tensor_type"):
        raise OnnxFileError(
            f"ONNX file {path}: {role} {value.name!r} is no tensor; only tensors can be compiled"
        )
    tensor = value.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    if not tensor.HasField("shape") or not all(isinstance(d, int) and d > 0 for d in shape):
        found = f"[{', '.join(map(str, shape))}]" if tensor.HasField("shape") else "unknown"
        raise OnnxFileError(
            f"ONNX file {path}: the shape of {role} {value.name!r} is {found}, but every "
            "dimension, the batch too, must be a fixed number; export it again with a fixed shape"
        )
    return TensorInfo(
        name=value.name,
        shape=tuple(int(dim) for dim in shape),
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
        layout="NCHW" if len(shape) == _IMAGE_RANK else "any",
    )


def _foreign_origin(path: Path, outputs: tuple[TensorInfo, ...]) -> ModelOrigin:
    """Name a user's file after itself; a single (N, classes) output tells the class count."""
    is_classifier = len(outputs) == 1 and len(outputs[0].shape) == 2
    return ModelOrigin(
        name=path.stem,
        weights=path.name,
        is_random=False,
        num_classes=outputs[0].shape[1] if is_classifier else None,
    )
