"""How others name the weights that they publish, and what their files leave unsaid.

A weight file of timm's or torchvision's holds tensors only. The epsilon of the batch norms, how
pictures are prepared and, for the weights that timm took over from TensorFlow, the padding, are in
their sources; a copy from the Hugging Face hub has a `config.json` beside it that says more.

References: timm's `timm/models/mobilenetv3.py` and `_efficientnet_blocks.py`; torchvision's
`models/mobilenetv2.py` and `mobilenetv3.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tvm_mobilenet.errors import WeightsError
from tvm_mobilenet.models.bottleneck_table import BlockSpec, BottleneckSpec
from tvm_mobilenet.records import ClassList, Preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Publisher",
    "timm_block_names",
    "timm_publisher",
    "torchvision_publisher",
    "torchvision_segmentation_publisher",
]

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_INCEPTION = (0.5, 0.5, 0.5)
_TENSORFLOW_EPS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """One publisher's naming of a family's weights, and what goes with them."""

    name: Literal["timm", "torchvision"]
    marker: str
    """A key that its files have and no other's."""
    module_names: Mapping[str, str] = field(hash=False)
    """Our module for each of theirs."""
    batch_norm_eps: float
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop_share: float = 0.875
    """Side of the crop over the side of the resized picture."""
    fit: Literal["crop", "stretch"] = "crop"
    """What becomes of a picture that is not square."""
    class_names: ClassList | None = None
    """Where the order of the classes is the publisher's own."""
    left_out: str | None = None
    """What the names of tensors begin with that only training needs."""
    pads_like_tensorflow: bool = False
    """Stride-2 layers are padded at the bottom and the right first, as TensorFlow's SAME does."""

    def preprocessing(self, resolution: int) -> Preprocessing:
        """Return how pictures are prepared for these weights."""
        return Preprocessing(
            resize=round(resolution / self.crop_share),
            crop=resolution,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            fit=self.fit,
        )

    def renamed(self, key: str) -> str:
        """Return our key for one of theirs; an unknown one stays as it is."""
        module, _, leaf = key.rpartition(".")
        return f"{self.module_names[module]}.{leaf}" if module in self.module_names else key

    def of_file(self, path: Path) -> Publisher:
        """Heed what the file's name and a `config.json` beside it say.

        Raises:
            WeightsError: the `config.json` is damaged.
        """
        if self.name != "timm":
            return self
        config = _hub_config(path)
        architecture = str(config.get("architecture", path.name))
        publisher = self
        if architecture.startswith("tf_"):
            publisher = replace(
                publisher,
                batch_norm_eps=_TENSORFLOW_EPS,
                mean=_INCEPTION,
                std=_INCEPTION,
                interpolation="bilinear",
                pads_like_tensorflow=True,
            )
        published = config.get("pretrained_cfg") or {}
        given: dict[str, Any] = {
            ours: tuple(published[theirs])
            if isinstance(published[theirs], list)
            else published[theirs]
            for theirs, ours in _HUB_FIELDS.items()
            if theirs in published
        }
        publisher = replace(publisher, **given)
        try:
            publisher.preprocessing(32)
        except (ValidationError, TypeError, ArithmeticError) as err:
            raise WeightsError(
                f"weights {path}: {path.with_name('config.json')} "
                "has a pretrained_cfg that cannot be understood; copy it again, or remove it to "
                "use the publisher's defaults"
            ) from err
        logger.info("%s: %s, batch norm eps %g", path, architecture, publisher.batch_norm_eps)
        return publisher


_HUB_FIELDS = {
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
    "crop_pct": "crop_share",
}


def _hub_config(path: Path) -> dict[str, Any]:
    """Read the hub's description of the weights, where there is one and it is of a timm model."""
    config = path.with_name("config.json")
    if not config.is_file():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise WeightsError(
            f"weights {path}: {config} beside it cannot be read; copy it again, or remove it to "
            "use the publisher's defaults"
        ) from err
    is_timm = isinstance(content, dict) and isinstance(content.get("pretrained_cfg"), dict)
    return content if is_timm else {}


def timm_publisher(
    module_names: Mapping[str, str],
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Publisher:
    """Describe timm: torch's epsilon, bicubic."""
    return Publisher(
        name="timm",
        marker="conv_stem.weight",
        module_names=module_names,
        batch_norm_eps=1e-5,
        mean=mean,
        std=std,
        interpolation="bicubic",
    )


def torchvision_publisher(module_names: Mapping[str, str], *, batch_norm_eps: float) -> Publisher:
    """Describe torchvision: bilinear, ImageNet's mean and deviation."""
    return Publisher(
        name="torchvision",
        marker="features.0.0.weight",
        module_names=module_names,
        batch_norm_eps=batch_norm_eps,
    )


VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""Pascal VOC's, in the order of the scores (Everingham et al. 2010, section 2)."""


def torchvision_segmentation_publisher(module_names: Mapping[str, str]) -> Publisher:
    """Describe torchvision's models for segmentation: the whole picture, VOC's classes."""
    return Publisher(
        name="torchvision",
        marker="backbone.0.0.weight",
        module_names=module_names,
        batch_norm_eps=1e-3,
        crop_share=1.0,
        fit="stretch",
        class_names=VOC_NAMES,
        left_out="aux_classifier.",
    )


def timm_block_names(blocks: Iterable[BlockSpec], *, universal: bool = False) -> dict[str, str]:
    """Map timm's module names to ours, from the stem to the last block.

    Args:
        blocks: of the network.
        universal: its bottlenecks are V4's, which timm names by their parts.
    """
    names = {"conv_stem": "stem.conv", "bn1": "stem.bn"}
    position: dict[int, int] = {}
    for index, block in enumerate(blocks):
        place = position[block.stage] = position.get(block.stage, -1) + 1
        theirs, ours = f"blocks.{block.stage}.{place}", f"blocks.{index}"
        if not isinstance(block, BottleneckSpec):
            parts = {"conv": "conv", "bn1": "bn"}
        elif block.expand_kernel > 1:
            parts = _numbered("expand", "exp", 1) | _numbered("project", "pwl", 2)
        elif universal:
            parts = {
                f"{their_part}.{leaf}": f"{our_part}.{leaf}"
                for their_part, our_part in _UNIVERSAL_PARTS.items()
                for leaf in ("conv", "bn")
            }
        elif block.expand_kernel:
            parts = _numbered("expand", "pw", 1) | _numbered("depthwise", "dw", 2)
            parts |= _numbered("project", "pwl", 3)
        else:
            parts = _numbered("depthwise", "dw", 1) | _numbered("project", "pw", 2)
        parts |= {"se.conv_reduce": "squeeze.reduce", "se.conv_expand": "squeeze.expand"}
        names |= {f"{theirs}.{key}": f"{ours}.{value}" for key, value in parts.items()}
    return names


_UNIVERSAL_PARTS = {
    "dw_start": "start",
    "pw_exp": "expand",
    "dw_mid": "depthwise",
    "pw_proj": "project",
}


def _numbered(ours: str, theirs: str, number: int) -> dict[str, str]:
    return {f"conv_{theirs}": f"{ours}.conv", f"bn{number}": f"{ours}.bn"}
