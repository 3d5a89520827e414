"""What stages hand to each other: frozen records, no torch, no tvm.

A record that is written to a file is a pydantic model, so that what is read back is validated.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ClassList",
    "ExportedModel",
    "FloatIsland",
    "LayerRecord",
    "ModelOrigin",
    "Preprocessing",
    "TensorInfo",
]


class Record(BaseModel):
    """Base of the records that live in files: frozen, and no unknown field is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(Record):
    """How a picture becomes the input tensor of a model.

    Resize the short side to `resize`, cut the central `crop` x `crop`, scale to 0..1, subtract
    `mean`, divide by `std`. Travels from the weights into the artifact. A picture that is stretched
    keeps its borders instead: both sides become `resize`, whatever its shape.
    """

    resize: int = Field(gt=0)
    """Length of the picture's short side after resizing, in pixels."""
    crop: int = Field(gt=0)
    """Side of the central square that is kept, in pixels; the model's resolution."""
    mean: tuple[float, float, float]
    """Per channel, of values in 0..1."""
    std: tuple[float, float, float]
    """Per channel, of values in 0..1."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    fit: Literal["crop", "stretch"] = "crop"
    """What becomes of a picture that is not square."""


ClassList = tuple[str, ...]
"""Class names in the order of the logits."""


class TensorInfo(Record):
    """One input or output of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    """`NCHW`, `NHWC`, or `any` where the tensor is no feature map."""


class ModelOrigin(Record):
    """Which model an ONNX file holds and where its weights came from."""

    name: str
    """`mobilenet_v1_0.5_160`, or the file's stem for a user's ONNX file."""
    weights: str
    """`random (seed 0)`, or the name of the weight file."""
    weights_sha256: str | None = None
    is_random: bool
    """True where the weights are seeded random numbers: accuracy means nothing."""
    num_classes: int | None = None


class ExportedModel(Record):
    """An ONNX file on disk, checked, with what is known about it."""

    path: str
    sha256: str
    origin: ModelOrigin
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: Preprocessing | None = None
    class_names: ClassList | None = None
    max_abs_error: float | None = None
    """Largest difference to PyTorch found when the file was accepted; None for a user's file."""


class LayerRecord(Record):
    """One kernel call of a compiled model, in the order of execution."""

    index: int
    """Position among the kernel calls of one inference."""
    kernel: str
    """Symbol in the library; several layers may share one kernel."""
    family: str
    """`pointwise`, `depthwise`, `conv`, `dense`, `pool`, `fallback`, ..."""
    tensor: str | None
    """Name of the ONNX tensor that this call computes; None where there is none."""
    onnx_nodes: tuple[str, ...] = ()
    """The ONNX nodes fused into the call."""
    shape: tuple[int, ...]
    """Shape of the output, in `layout`."""
    layout: str
    """Layout of the output: `NHWC`, `NCHW`, or `any`."""
    macs: int
    """Multiply-adds of the call."""
    bytes: int
    """Bytes of input, weights and output that the call touches at least once."""
    origin: Literal["computed", "tuned", "fallback"]
    """Where the schedule comes from."""
    schedule: dict[str, Any] = Field(default_factory=dict)
    """The schedule's parameters."""


class FloatIsland(Record):
    """Neighbouring operators of a quantized model that are computed in float32."""

    tensor: str
    """Name of the ONNX tensor that the last of them computes."""
    operators: tuple[str, ...]
    """In the order of execution, as Relax names them."""
    reason: str
    """Why there is no integer form of them."""
    is_quantized_again: bool
    """Whether the result is quantized, so that the kernel has integers at its end."""
