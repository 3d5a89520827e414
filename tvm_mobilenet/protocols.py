"""Interfaces that stages are handed instead of the things themselves: progress and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

    from tvm_mobilenet.artifact import Artifact
    from tvm_mobilenet.facts import HostFacts
    from tvm_mobilenet.series import Memory, Series, SeriesRequest

__all__ = ["Device", "Executor", "LayerReplacement", "NoProgress", "Progress"]

Array = npt.NDArray[Any]
LayerReplacement = Callable[[int, Array], "Array | None"]
"""Given a layer's index and its output, what stands in its place for the layers behind it."""


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
    """A compiled model, opened on some device, ready to be fed; close it after use.

    Inputs and outputs are keyed by the names in the manifest, arrays in the manifest's shape,
    dtype and layout. One executor serves one caller at a time.
    """

    @property
    def load_ms(self) -> float:
        """Milliseconds from opening the library to being ready for a call."""

    @property
    def threads(self) -> int:
        """How many threads compute."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute every output once."""

    def times_ms(self, inputs: Mapping[str, Array], repeat: int) -> list[float]:
        """Time `repeat` inferences one by one, on the device's own clock."""

    def layer_times_ms(self, inputs: Mapping[str, Array], repeat: int) -> npt.NDArray[np.float64]:
        """Time every kernel call in its place: (repeat, layers) f64."""

    def layer_outputs(
        self, inputs: Mapping[str, Array], replace: LayerReplacement | None = None
    ) -> list[Array]:
        """Run once and return what each kernel call wrote, in the order of `manifest.layers`.

        Args:
            inputs: the model's.
            replace: given a layer's index and what it wrote, what the layers behind it shall read
                in place of that, or None to leave it. Devices that cannot do so do not ask.
        """

    def memory(self) -> Memory | None:
        """Return what the process held before the model, and the most since; None if unknown."""

    def close(self) -> None:
        """Let go of the model and of what runs it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Device(Protocol):
    """Where compiled models are run: this machine, a board, or a script in a test."""

    @property
    def name(self) -> str:
        """How errors and reports call it."""

    @property
    def machine(self) -> str | None:
        """What its libraries must be for, as `library_machine` says; None if not known yet."""

    def facts(self) -> HostFacts:
        """Describe it."""

    def open(
        self, artifact: Artifact, threads: int | None = None, cpus: Sequence[int] = ()
    ) -> Executor:
        """Load an artifact's library there.

        Args:
            artifact: what to load.
            threads: how many threads compute; None for one on each of `cpus`, or each fast core.
            cpus: the processors to compute on; empty for the device's choice.

        Raises:
            DeviceError: the device cannot be reached, is held by somebody else, or has gone.
            ArtifactError: it cannot load the library.
            SpecError: threads or processors that it does not have.
        """

    def take_series(self, artifact: Artifact, request: SeriesRequest) -> Series:
        """Time a series of inferences on the artifact's first seeded input."""
