"""What an engine is: the calls that a worker makes, whichever engine it holds.

An engine lives in a worker process of its own (see `workers.py`), so its import and its threads
touch nobody else. `infer` is the cheapest way the engine's Python interface offers to compute once
from inputs that are in place and to leave the outputs in memory; `outputs` fetches them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from benchmarks.absence import EngineUnavailableError

__all__ = ["Anywhere", "Engine", "Job", "R", "installed_version", "only_float32"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job:
    """One model for one engine."""

    onnx: Path
    inputs: dict[str, np.ndarray]
    threads: int
    artifact: Path | None = None
    """Folder of our compiled model; the other engines do not look at it."""
    dtype: str = "float32"
    """What the file computes with: int8 if it is quantized."""


class Engine(Protocol):
    """An inference engine with one model loaded."""

    version: str
    note: str
    """Settings that a reader of the table should know."""

    def refill(self) -> None:
        """Put the inputs in place again, where `infer` uses their memory up. Not timed."""

    def infer(self) -> None:
        """Compute every output once."""

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last `infer`, in the order of the ONNX file."""

    def on_its_thread(self, function: Callable[[], R]) -> R:
        """Call `function`, which calls `infer` many times, on the thread that the engine wants."""


class Anywhere:
    """An engine that is called from any thread, and that leaves its inputs alone."""

    def on_its_thread(self, function: Callable[[], R]) -> R:
        """Call it here."""
        return function()

    def refill(self) -> None:
        """Do nothing: the inputs are still in place."""


def installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise EngineUnavailableError(f"not installed (pip install {package})") from None


def only_float32(engine: str, job: Job) -> None:
    if job.dtype != "float32":
        raise EngineUnavailableError(f"{engine} reads no {job.dtype} model from ONNX")
