"""Model names, and what is known about each model without building it. Imports no torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from decimal import Decimal

from tvm_mobilenet.errors import SpecError, UnknownModelError
from tvm_mobilenet.models.families import FAMILIES, Family, Task
from tvm_mobilenet.models.layers import LayerSpec
from tvm_mobilenet.models.published import PublishedFigures

__all__ = [
    "FAMILIES",
    "MODELS",
    "Family",
    "ModelRow",
    "ModelSpec",
    "PublishedFigures",
    "check_num_classes",
    "get_model_spec",
    "list_models",
]

MAX_BYTES = 2**31 - 1
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
_BYTES_PER_NUMBER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One member of a family: its width multiplier and its input resolution."""

    family: str
    alpha: float
    resolution: int

    @property
    def name(self) -> str:
        """The TF-Slim spelling: `mobilenet_v1_0.5_160`; no alpha where the family has none."""
        if not FAMILIES[self.family].has_alpha:
            return f"{self.family}_{self.resolution}"
        alpha = format(Decimal(repr(self.alpha)), "f")  # no exponent, which would not parse back
        return f"{self.family}_{alpha}_{self.resolution}"

    @property
    def published(self) -> PublishedFigures | None:
        """The published figures, or None for a model that is in no table."""
        return FAMILIES[self.family].published.get((self.alpha, self.resolution))

    @property
    def task(self) -> Task:
        """What the model is made for."""
        return FAMILIES[self.family].task

    def layers(self, num_classes: int | None = None) -> tuple[LayerSpec, ...]:
        """Lay out the layers that hold parameters; None for the family's number of classes."""
        family = FAMILIES[self.family]
        return family.layers(self.alpha, self.resolution, num_classes or family.default_classes)

    def params(self, num_classes: int | None = None) -> int:
        """Count the trainable parameters."""
        return sum(layer.params for layer in self.layers(num_classes))

    def macs(self, num_classes: int | None = None) -> int:
        """Count the multiply-adds of one inference at batch 1."""
        return sum(layer.macs for layer in self.layers(num_classes))

    def size_bytes(self, num_classes: int | None = None) -> int:
        """Count the bytes of a float32 weight file, its header of a few kB left out."""
        layers = self.layers(num_classes)
        return _BYTES_PER_NUMBER * sum(layer.params + layer.statistics for layer in layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One row of the table that `tvm-mobilenet models` prints."""

    name: str
    params: int
    macs: int
    published_top1: float | None
    """Of a classifier; this and the next are None where it was not published."""
    published_top5: float | None
    published_params_m: float
    published_macs_m: float
    size_bytes: int
    """Float32 weights on disk."""
    published_map: float | None
    """Mean average precision of a detector, COCO, percent; None for other models."""
    published_miou: float | None
    """Mean intersection over union of a segmenter, percent; None for other models."""
    note: str
    """Where a published figure differs from the computed one, and why."""


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for family in FAMILIES.values()
    for spec in (
        ModelSpec(family=family.name, alpha=alpha, resolution=resolution)
        for alpha, resolution in family.published
    )
}
"""The models with published figures, in the order of their tables; any other size can be named."""


def get_model_spec(name: str) -> ModelSpec:
    """Parse a model name of any width and resolution that its family allows.

    Raises:
        UnknownModelError: no family of that name; the closest known model is suggested.
        SpecError: the width or the resolution is not one that a network can have.
    """
    match = re.fullmatch(rf"({'|'.join(map(_pattern, FAMILIES.values()))})_([-+]?\d{{1,9}})", name)
    if match is None:
        close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "`tvm-mobilenet models` lists them"
        spelling = " or ".join(family.spelling for family in FAMILIES.values())
        raise UnknownModelError(f"unknown model {name!r}: models are named {spelling}; {hint}")
    family, _, alpha = match[1].rpartition("_")
    if family not in FAMILIES or not FAMILIES[family].has_alpha:
        family, alpha = match[1], "1"
    spec = ModelSpec(family=family, alpha=float(alpha), resolution=int(match[2]))
    _check(name, spec)
    return spec


def _pattern(family: Family) -> str:
    alpha = r"_[-+]?(?:\d+\.?\d*|\.\d+)" if family.has_alpha else ""
    return re.escape(family.name) + alpha


def _check(name: str, spec: ModelSpec) -> None:
    minimum = FAMILIES[spec.family].min_resolution
    if not spec.alpha > 0:
        raise SpecError(
            f"model {name!r}: alpha is {spec.alpha!r}, but a width multiplier is above 0, "
            "such as 0.25 or 1.0"
        )
    if spec.resolution < minimum:
        raise SpecError(
            f"model {name!r}: resolution is {spec.resolution}, but the strides need at least "
            f"{minimum}"
        )
    if 3 * _BYTES_PER_NUMBER * spec.resolution**2 > MAX_BYTES:
        raise SpecError(
            f"model {name!r}: resolution is {spec.resolution}, where one picture alone passes "
            "2 GiB; choose a smaller one"
        )
    # One number first: the layer table of an absurd width would be built of absurd integers.
    if spec.alpha > 1e4 or spec.size_bytes() > MAX_BYTES:
        raise SpecError(
            f"model {name!r}: alpha is {spec.alpha!r}, whose weights pass the 2 GiB that an ONNX "
            "file can hold; choose a smaller one"
        )


def check_num_classes(num_classes: int) -> None:
    """Refuse a number of classes below 1."""
    if num_classes < 1:
        raise SpecError(f"number of classes is {num_classes}, but a classifier has at least 1")


def list_models() -> list[ModelRow]:
    """Tabulate every published model: computed counts beside the published figures."""
    return [_row(spec) for spec in MODELS.values()]


def _row(spec: ModelSpec) -> ModelRow:
    published = spec.published
    assert published is not None, spec
    return ModelRow(
        name=spec.name,
        params=spec.params(),
        macs=spec.macs(),
        published_top1=published.top1,
        published_top5=published.top5,
        published_params_m=published.params_m,
        published_macs_m=published.macs_m,
        size_bytes=spec.size_bytes(),
        published_map=published.mean_ap,
        published_miou=published.mean_iou,
        note=FAMILIES[spec.family].slips(spec.alpha, spec.resolution),
    )
