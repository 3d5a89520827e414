"""Interfaces that stages are handed instead of the things themselves: progress and devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

__all__ = ["NoProgress", "Progress"]


class Progress(Protocol):
    """Where a stage reports how far it is. The command line shows it as a bar."""

    def start(self, task: str, total: float | None = None) -> None:
        """Begin `task`; `total` is None where the length is not known."""

    def advance(self, amount: float = 1, status: str = "") -> None:
        """Move on by `amount`; `status` replaces the text behind the bar."""

    def done(self, status: str = "") -> None:
        """End the task that was started last."""


class NoProgress:
    """A `Progress` that shows nothing."""

    def start(self, task: str, total: float | None = None) -> None:
        """Ignore."""

    def advance(self, amount: float = 1, status: str = "") -> None:
        """Ignore."""

    def done(self, status: str = "") -> None:
        """Ignore."""


class Executor(Protocol):
    """A compiled model, opened on some device, ready to be fed.

    Inputs and outputs are keyed by the names in the manifest, arrays in the manifest's shape,
    dtype and layout.
    """

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output once."""
