"""What a training reports. Imports no torch."""

from __future__ import annotations

from tvm_mobilenet.records import ClassList, Record

__all__ = ["EpochRecord", "TrainResult"]


class EpochRecord(Record):
    """What one epoch did."""

    epoch: int
    """From 1."""
    learning_rate: float
    train_loss: float
    held_out_loss: float
    held_out_accuracy: float
    """The task's measure on the held-out pictures, 0 to 1: for a classifier, the share of them that
    it classifies right."""


class TrainResult(Record):
    """A finished training: the weight file and how good its weights are."""

    model: str
    data: str
    weights: str
    """Path of the weight file, which holds the best epoch's weights."""
    sha256: str
    class_names: ClassList
    train_images: int
    held_out_images: int
    epochs: int
    seed: int
    measure: str = "accuracy"
    """What `held_out_accuracy` counts."""
    best_epoch: int
    held_out_accuracy: float
    """Of the best epoch, 0 to 1. The best was chosen by it, so it flatters a little."""
    held_out_loss: float
    history: tuple[EpochRecord, ...]
    resumed_after: int = 0
    """Epochs that an earlier, interrupted run had done."""
    seconds: float
    """Of this run alone."""
