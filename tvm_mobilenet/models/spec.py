"""Model names, and what is known about each model without building it. Imports no torch.

A further family is one entry in `FAMILIES`: its layer table, its torch module and the file of its
published figures.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources

from tvm_mobilenet.errors import SpecError, UnknownModelError
from tvm_mobilenet.models.layers import LayerSpec
from tvm_mobilenet.models.mobilenet_v1_table import MIN_RESOLUTION, mobilenet_v1_layers

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

IMAGENET_CLASSES = 1000
MAX_BYTES = 2**31 - 1
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
_BYTES_PER_NUMBER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigures:
    """One row of a family's published table."""

    macs_m: float
    """Multiply-adds in millions."""
    params_m: float
    """Parameters in millions."""
    top1: float
    """ImageNet, percent, float32, single crop."""
    top5: float
    """ImageNet, percent, float32, single crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of one family share."""

    name: str
    layers: Callable[[float, int, int], tuple[LayerSpec, ...]]
    """Layer table for (alpha, resolution, number of classes)."""
    module: str
    """`package.module:Class` of the torch module, imported when one is built."""
    min_resolution: int
    published_csv: str
    """File in `tvm_mobilenet/data`."""
    slips: Callable[[float, int], str]
    """Why the published multiply-adds for (alpha, resolution) differ from the computed; or ''."""
    params_note: str


def _mobilenet_v1_slips(alpha: float, resolution: int) -> str:
    if alpha == 0.75:
        # 325.40 - 8.13 = 317.27, and likewise at 192, 160 and 128; the paper itself has 325.
        return "published multiply-adds leave out the stem; the paper has 325 M at 224"
    if (alpha, resolution) == (0.25, 192):
        return "published multiply-adds are a slip: 41 M at 224 scales to 30 M, not 34 M"
    return ""


FAMILIES: dict[str, Family] = {
    "mobilenet_v1": Family(
        name="mobilenet_v1",
        layers=mobilenet_v1_layers,
        module="tvm_mobilenet.models.mobilenet_v1:MobileNetV1",
        min_resolution=MIN_RESOLUTION,
        published_csv="mobilenet_v1_published.csv",
        slips=_mobilenet_v1_slips,
        # 4.243, 2.594, 1.337 and 0.473 M with three: the published 4.24, 2.59, 1.34 and 0.47.
        params_note="published parameters count three values per batch-norm channel, "
        "`params` the two that are trained",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One member of a family: its width multiplier and its input resolution."""

    family: str
    alpha: float
    resolution: int

    @property
    def name(self) -> str:
        """The TF-Slim spelling: `mobilenet_v1_0.5_160`."""
        alpha = format(Decimal(repr(self.alpha)), "f")  # no exponent, which would not parse back
        return f"{self.family}_{alpha}_{self.resolution}"

    @property
    def published(self) -> PublishedFigures | None:
        """The published figures, or None for a model that is in no table."""
        return _published(self.family).get((self.alpha, self.resolution))

    def layers(self, num_classes: int = IMAGENET_CLASSES) -> tuple[LayerSpec, ...]:
        """Lay out the layers that hold parameters."""
        return FAMILIES[self.family].layers(self.alpha, self.resolution, num_classes)

    def params(self, num_classes: int = IMAGENET_CLASSES) -> int:
        """Count the trainable parameters."""
        return sum(layer.params for layer in self.layers(num_classes))

    def macs(self, num_classes: int = IMAGENET_CLASSES) -> int:
        """Count the multiply-adds of one inference at batch 1."""
        return sum(layer.macs for layer in self.layers(num_classes))

    def size_bytes(self, num_classes: int = IMAGENET_CLASSES) -> int:
        """Count the bytes of a float32 weight file, its header of a few kB left out."""
        layers = self.layers(num_classes)
        return _BYTES_PER_NUMBER * sum(layer.params + layer.statistics for layer in layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One row of the table that `tvm-mobilenet models` prints."""

    name: str
    params: int
    macs: int
    published_top1: float
    published_top5: float
    published_params_m: float
    published_macs_m: float
    size_bytes: int
    """Float32 weights on disk."""
    note: str
    """Where a published figure differs from the computed one, and why."""


@cache
def _published(family: str) -> dict[tuple[float, int], PublishedFigures]:
    file = resources.files("tvm_mobilenet") / "data" / FAMILIES[family].published_csv
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {
        (float(row["alpha"]), int(row["res"])): PublishedFigures(
            macs_m=float(row["macs_m"]),
            params_m=float(row["params_m"]),
            top1=float(row["top1"]),
            top5=float(row["top5"]),
        )
        for row in rows
    }


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for family in FAMILIES
    for spec in (
        ModelSpec(family=family, alpha=alpha, resolution=resolution)
        for alpha, resolution in _published(family)
    )
}
"""The models with published figures, in the order of their tables; any other size can be named."""


def get_model_spec(name: str) -> ModelSpec:
    """Parse a model name of any width and resolution that its family allows.

    Raises:
        UnknownModelError: no family of that name; the closest known model is suggested.
        SpecError: the width or the resolution is not one that a network can have.
    """
    families = "|".join(map(re.escape, FAMILIES))
    match = re.fullmatch(rf"({families})_([-+]?(?:\d+\.?\d*|\.\d+))_([-+]?\d{{1,9}})", name)
    if match is None:
        close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "`tvm-mobilenet models` lists them"
        spelling = " or ".join(f"{family}_<alpha>_<resolution>" for family in FAMILIES)
        raise UnknownModelError(f"unknown model {name!r}: models are named {spelling}; {hint}")
    spec = ModelSpec(family=match[1], alpha=float(match[2]), resolution=int(match[3]))
    _check(name, spec)
    return spec


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
        note=FAMILIES[spec.family].slips(spec.alpha, spec.resolution),
    )
