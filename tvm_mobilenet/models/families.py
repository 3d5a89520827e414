"""The families of models: one record each, their layer tables, torch modules, published figures.

A further family is one entry in `FAMILIES`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tvm_mobilenet.models.layers import LayerSpec
from tvm_mobilenet.models.mobilenet_v1_table import mobilenet_v1_layers
from tvm_mobilenet.models.mobilenet_v2_table import mobilenet_v2_layers
from tvm_mobilenet.models.mobilenet_v3_table import Variant as V3Variant
from tvm_mobilenet.models.mobilenet_v3_table import mobilenet_v3_layers
from tvm_mobilenet.models.mobilenet_v4_table import Variant as V4Variant
from tvm_mobilenet.models.mobilenet_v4_table import mobilenet_v4_layers
from tvm_mobilenet.models.published import PublishedFigures, published_figures
from tvm_mobilenet.models.segmentation_table import (
    VOC_CLASSES,
    deeplabv3_v2_layers,
    deeplabv3_v3_layers,
    lraspp_v3_layers,
)
from tvm_mobilenet.models.ssd_table import (
    COCO_CLASSES,
    SsdTable,
    ssd_layers,
    ssd_v1,
    ssdlite_v2,
    ssdlite_v3,
)

__all__ = ["FAMILIES", "Family", "Task"]

Task = Literal["classification", "detection", "segmentation"]

_MIN_RESOLUTION = 32
"""Five strides of 2: below 32 a stride would have nothing left to halve."""


def _no_slips(alpha: float, resolution: int) -> str:
    del alpha, resolution
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of one family share."""

    name: str
    layers: Callable[[float, int, int], tuple[LayerSpec, ...]]
    """Layer table for (alpha, resolution, number of classes)."""
    module: str
    """`package.module:Class` of the torch module, imported when one is built."""
    published_csv: str | None = None
    """File in `tvm_mobilenet/data`; None where there is none."""
    variant: str | None = None
    """Of the file's rows, where it holds several families."""
    has_alpha: bool = True
    """Whether there is a width multiplier, which then is part of a model's name."""
    min_resolution: int = _MIN_RESOLUTION
    slips: Callable[[float, int], str] = _no_slips
    """Why the published multiply-adds for (alpha, resolution) differ from the computed; or ''."""
    task: Task = "classification"
    """What the models are made for."""
    default_classes: int = 1000
    """How many classes a model has that is built without weights; ImageNet's."""
    params_note: str = ""
    """How the published parameters are counted."""

    @property
    def published(self) -> dict[tuple[float, int], PublishedFigures]:
        """The published figures for each (alpha, resolution)."""
        if self.published_csv is None:
            return {}
        return published_figures(self.published_csv, self.variant)

    @property
    def spelling(self) -> str:
        """How its models are named: `mobilenet_v1_<alpha>_<resolution>`."""
        return f"{self.name}_{'<alpha>_' if self.has_alpha else ''}<resolution>"


def _mobilenet_v1_slips(alpha: float, resolution: int) -> str:
    if alpha == 0.75:
        # 325.40 - 8.13 = 317.27, and likewise at 192, 160 and 128; the paper itself has 325.
        return "published multiply-adds leave out the stem; the paper has 325 M at 224"
    if (alpha, resolution) == (0.25, 192):
        return "published multiply-adds are a slip: 41 M at 224 scales to 30 M, not 34 M"
    return ""


def _mobilenet_v3_small_slips(alpha: float, resolution: int) -> str:
    del resolution
    if alpha == 1.0:
        return "published figures are a slip: the paper has 56 M and 2.5 M, as computed here"
    if alpha == 0.75:
        # 256 more channels in the head: 43.40 + 0.37 = 43.77 M, 2.042 + 0.367 = 2.409 M.
        return "published figures are those of a head 1280 wide; the released weights have 1024"
    return ""


def _mobilenet_v3_small_minimalistic_slips(alpha: float, resolution: int) -> str:
    del alpha, resolution
    return (
        "published multiply-adds are a slip: without squeeze-and-excite and 5x5 they are fewer "
        "than the 56 M that the paper has for small"
    )


def _v3(variant: V3Variant, class_name: str, slips: Callable[[float, int], str]) -> Family:
    return Family(
        name=f"mobilenet_v3_{variant}",
        layers=partial(mobilenet_v3_layers, variant),
        module=f"tvm_mobilenet.models.mobilenet_v3:{class_name}",
        published_csv="mobilenet_v3_published.csv",
        variant=variant,
        slips=slips,
        params_note="published parameters count what is trained, two values per batch-norm channel",
    )


def _v4(variant: V4Variant, class_name: str) -> Family:
    def layers(alpha: float, resolution: int, num_classes: int) -> tuple[LayerSpec, ...]:
        del alpha
        return mobilenet_v4_layers(variant, resolution, num_classes)

    def slips(alpha: float, resolution: int) -> str:
        del alpha, resolution
        if variant == "conv_small":
            return "published multiply-adds, 0.2 G, are rounded to tenths of 10^9"
        # 1080.2 M are 1.006 times 2^30, 6376.2 M 5.94 times.
        return "published multiply-adds are rounded to tenths of 2^30"

    return Family(
        name=f"mobilenet_v4_{variant}",
        layers=layers,
        module=f"tvm_mobilenet.models.mobilenet_v4:{class_name}",
        published_csv="mobilenet_v4_published.csv",
        variant=variant,
        has_alpha=False,
        slips=slips,
        # 3.774 M; 9.716 and 32.591 M are 9.27 and 31.08 times 2^20, the published 9.2 and 31.
        params_note="published parameters count two values per batch-norm channel"
        + ("" if variant == "conv_small" else ", in units of 2^20"),
    )


def _ssd(
    name: str, class_name: str, table: Callable[[float], SsdTable], *, has_alpha: bool = True
) -> Family:
    return Family(
        name=name,
        layers=partial(ssd_layers, table),
        module=f"tvm_mobilenet.models.ssd:{class_name}",
        published_csv="detection_published.csv",
        variant=name,
        has_alpha=has_alpha,
        task="detection",
        default_classes=COCO_CLASSES,
        params_note="parameters count two values per batch-norm channel and 90 classes, as COCO "
        "numbers them",
    )


def _segmentation(
    name: str,
    class_name: str,
    layers: Callable[[float, int, int], tuple[LayerSpec, ...]],
    slip: str = "",
) -> Family:
    def slips(alpha: float, resolution: int) -> str:
        del alpha, resolution
        return slip

    return Family(
        name=name,
        layers=layers,
        module=f"tvm_mobilenet.models.segmentation:{class_name}",
        published_csv="segmentation_published.csv",
        variant=name,
        has_alpha=False,
        task="segmentation",
        default_classes=VOC_CLASSES,
        slips=slips,
        params_note="parameters count two values per batch-norm channel, and Pascal VOC's 21 "
        "classes",
    )


_ENTRIES = (
    Family(
        name="mobilenet_v1",
        layers=mobilenet_v1_layers,
        module="tvm_mobilenet.models.mobilenet_v1:MobileNetV1",
        published_csv="mobilenet_v1_published.csv",
        slips=_mobilenet_v1_slips,
        # 4.243, 2.594, 1.337 and 0.473 M with three: the published 4.24, 2.59, 1.34 and 0.47.
        params_note="published parameters count three values per batch-norm channel, "
        "`params` the two that are trained",
    ),
    Family(
        name="mobilenet_v2",
        layers=mobilenet_v2_layers,
        module="tvm_mobilenet.models.mobilenet_v2:MobileNetV2",
        published_csv="mobilenet_v2_published.csv",
        # 6.061, 5.343, 3.471, 2.610, 1.950 and 1.663 M without: the published 6.06 to 1.66.
        params_note="published parameters leave out the two values per batch-norm channel, "
        "published multiply-adds are cut off to whole millions",
    ),
    _v3("large", "MobileNetV3Large", _no_slips),
    _v3("large_minimalistic", "MobileNetV3LargeMinimalistic", _no_slips),
    _v3("small", "MobileNetV3Small", _mobilenet_v3_small_slips),
    _v3(
        "small_minimalistic",
        "MobileNetV3SmallMinimalistic",
        _mobilenet_v3_small_minimalistic_slips,
    ),
    _v4("conv_small", "MobileNetV4ConvSmall"),
    _v4("conv_medium", "MobileNetV4ConvMedium"),
    _v4("conv_large", "MobileNetV4ConvLarge"),
    _ssd("ssd_mobilenet_v1", "SsdMobileNetV1", ssd_v1),
    _ssd("ssdlite_mobilenet_v2", "SsdLiteMobileNetV2", ssdlite_v2),
    _ssd("ssdlite_mobilenet_v3_large", "SsdLiteMobileNetV3Large", ssdlite_v3, has_alpha=False),
    _segmentation("lraspp_mobilenet_v3_large", "LrasppMobileNetV3Large", lraspp_v3_layers),
    _segmentation(
        "deeplabv3_mobilenet_v2",
        "DeepLabV3MobileNetV2",
        deeplabv3_v2_layers,
        # 2740.7 M, and 11 M for two multiply-adds of each score of 513 x 513 pixels.
        "published multiply-adds, 2.75 G, are those of the layers and of blowing up the scores",
    ),
    _segmentation(
        "deeplabv3_mobilenet_v3_large",
        "DeepLabV3MobileNetV3Large",
        deeplabv3_v3_layers,
        # 3,851 parameters, of a 3x3 and a 1x1 convolution at an eighth of the picture's size.
        "published figures count the auxiliary classifier of its training: 0.004 M and 16 M",
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ENTRIES}
