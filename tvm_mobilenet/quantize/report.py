"""What a quantization did, layer by layer."""

from __future__ import annotations

from pydantic import computed_field

from tvm_mobilenet.records import Record

__all__ = ["QuantizeReport", "QuantizedLayer"]


class QuantizedLayer(Record):
    """One convolution or dense layer."""

    name: str
    """Of its ONNX node."""
    operator: str
    macs: int
    weights: int
    is_float: bool
    """Whether it was left in float32."""
    snr_db: float | None
    """Signal over noise of its output against the float model, all noise before it included; None
    where there is none to measure."""
    alone_snr_db: float | None
    """Signal over noise of the model's outputs with this layer alone quantized."""


class QuantizeReport(Record):
    """A quantized ONNX file and what it cost."""

    path: str
    sha256: str
    size_bytes: int
    float_size_bytes: int
    model: str
    calibration: str
    inputs: int
    """How many inputs the ranges were found on."""
    method: str
    equalized_pairs: int
    corrected_biases: int
    output_snr_db: float | None
    """Signal over noise of the model's outputs."""
    layers: tuple[QuantizedLayer, ...]

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def kept_float(self) -> tuple[str, ...]:
        """The names of the layers left in float32."""
        return tuple(layer.name for layer in self.layers if layer.is_float)
