"""The tasks that models are trained for, by what their family is made for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tvm_mobilenet.models.families import FAMILIES
from tvm_mobilenet.models.spec import ModelSpec
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.training.classification import Classification
from tvm_mobilenet.training.detection import Detection
from tvm_mobilenet.training.segmentation import SegmentationTask
from tvm_mobilenet.training.task import Task

__all__ = ["open_task"]

_TASKS: dict[str, Callable[[ModelSpec, str | Path, Progress], Task]] = {
    "classification": Classification.open,
    "detection": Detection.open,
    "segmentation": SegmentationTask.open,
}


def open_task(spec: ModelSpec, data: str | Path, progress: Progress) -> Task:
    """Open a data set for the task that a model is made for.

    Raises:
        InputFileError, ImageError: the data cannot be used.
    """
    return _TASKS[FAMILIES[spec.family].task](spec, data, progress)
