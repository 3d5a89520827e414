"""What our weight files say about themselves. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from tvm_mobilenet.errors import WeightsError
from tvm_mobilenet.records import ClassList, Preprocessing, Record

__all__ = [
    "FORMAT_VERSION",
    "METADATA_KEY",
    "WeightsDescription",
    "damaged",
    "describe_weights",
    "weight_shapes",
]

FORMAT_VERSION = 1
# 1: the first; one JSON object under one key, because safetensors writes keys in random order.
#    `pruned` came later, and is left out where it says nothing.

METADATA_KEY = "tvm_mobilenet"


class WeightsDescription(Record):
    """The description inside a weight file of ours, beside the tensors."""

    format_version: int = FORMAT_VERSION
    model: str
    """`mobilenet_v1_0.25_32`."""
    num_classes: int = Field(gt=0)
    class_names: ClassList | None = None
    preprocessing: Preprocessing
    batch_norm_eps: float = Field(gt=0)
    pruned: float | None = Field(default=None, gt=0, lt=1)
    """Share of the family's multiply-adds that is left where channels were taken out; then the
    tensors' shapes say how wide the layers are."""
    training: dict[str, Any] | None = None
    """Data set, recipe, seed and accuracy; None where the weights were not trained here."""


def describe_weights(path: Path | str) -> WeightsDescription | None:
    """Read the description of a weight file; None where it is not one of ours.

    Raises:
        WeightsError: the file is damaged, or its description is of another format version.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as err:
        raise damaged(path, err) from err
    if METADATA_KEY not in metadata:
        return None
    return _parse(path, metadata[METADATA_KEY])


def weight_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a `.safetensors` file, and nothing else of it.

    Raises:
        WeightsError: the file is damaged.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            # The file is no mapping: it cannot be iterated over.
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as err:
        raise damaged(path, err) from err


def damaged(path: Path, err: Exception) -> WeightsError:
    """Word why a weight file cannot be read."""
    if isinstance(err, FileNotFoundError):
        return WeightsError(f"weights {path}: there is no such file")
    if isinstance(err, IsADirectoryError) or path.is_dir():
        return WeightsError(f"weights {path}: it is a folder; give a .safetensors or .pth file")
    reason = str(err).strip().split("\n")[0].split(". ")[0] or type(err).__name__
    return WeightsError(
        f"weights {path}: the file is damaged or cut short ({reason}); copy or train it again"
    )


def _parse(path: Path, text: str) -> WeightsDescription:
    try:
        fields = json.loads(text)
        version = fields.get("format_version")
    except (ValueError, AttributeError) as err:
        raise WeightsError(f"weights {path}: its description is no JSON object") from err
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"weights {path}: format version {version!r}, but this program reads {FORMAT_VERSION}; "
            "use the version that wrote it, or train again"
        )
    try:
        return WeightsDescription.model_validate(fields)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise WeightsError(f"weights {path}: description, {field}: {first['msg']}") from err
