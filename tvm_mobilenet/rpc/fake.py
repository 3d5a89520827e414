"""A device for tests: it computes what a function says, as fast as a script says, and fails on cue.

It shows what the stages do with a device, without a board, a network or TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.facts import BoardFacts, HostFacts, throttling
from tvm_mobilenet.inputs import checked_inputs, seeded
from tvm_mobilenet.protocols import LayerReplacement
from tvm_mobilenet.series import BoardRecord, Memory, Series, SeriesRequest, take_steps

__all__ = ["FakeDevice", "FakeExecutor"]

Array = npt.NDArray[Any]
Outputs = Callable[[Mapping[str, Array]], dict[str, Array]]


@dataclass(kw_only=True)
class FakeDevice:
    """A scripted device; what was asked of it is kept in `calls`."""

    outputs: Outputs | None = None
    """What a run computes; None for zeros in the manifest's shapes."""
    layer_outputs: Callable[[Mapping[str, Array]], list[Array]] | None = None
    """What every layer computes; None for zeros."""
    latencies_ms: Sequence[float] = (1.0,)
    """Of the inferences, in turn, and from the beginning again."""
    failures: Mapping[str, Exception] = field(default_factory=dict)
    """By step (`open`, `run`, `times`, `layers`, `facts`): what is raised there."""
    facts_series: Sequence[BoardFacts] = (BoardFacts(cpu="fake", machine="x86_64"),)
    """What it says of itself, in turn; the last one stays."""
    memory: Memory | None = field(default_factory=lambda: Memory(1 << 20, 3 << 20))
    threads: int = 1
    name: str = "fake"
    machine: str | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Step and argument, in order."""
    opened: int = 0
    """Executors that are open now."""

    def _do(self, step: str, argument: Any = None) -> None:
        self.calls.append((step, argument))
        if step in self.failures:
            raise self.failures[step]

    def board_facts(self) -> BoardFacts:
        """Return the next of `facts_series`."""
        asked = sum(step == "facts" for step, _ in self.calls)
        self._do("facts")
        return self.facts_series[min(asked, len(self.facts_series) - 1)]

    def facts(self) -> HostFacts:
        """Describe the device."""
        return self.board_facts().host_facts()

    def open(
        self, artifact: Artifact, threads: int | None = None, cpus: Sequence[int] = ()
    ) -> FakeExecutor:
        """Pretend to load an artifact's library."""
        self._do("open", (artifact.path, threads, tuple(cpus)))
        return FakeExecutor(self, artifact, threads or self.threads)

    def take_series(self, artifact: Artifact, request: SeriesRequest) -> Series:
        """Time a series as a board does, without the waiting."""
        (inputs,) = seeded(artifact.manifest, 1)
        before = self.board_facts()
        with self.open(artifact, request.threads, request.cpus) as executor:
            steps = take_steps(
                executor,
                inputs,
                request,
                burst_s=1.0,
                rest=lambda seconds: self._do("rest", seconds),
            )
        after = self.board_facts()
        record = BoardRecord(
            name=self.name,
            address="fake:1",
            key=None,
            has_agent=True,
            threads=executor.threads,
            cpus=request.cpus,
            cool_down_s=request.cool_down_s or 0.0,
            before=before,
            after=after,
        )
        return Series(
            steps=steps,
            threads=executor.threads,
            host=before.host_facts(),
            tvm=before.tvm or "unknown",
            board=record,
            warnings=tuple(throttling(before, after, request.cpus)),
        )


class FakeExecutor:
    """What `FakeDevice.open` returns."""

    load_ms = 1.0

    def __init__(self, device: FakeDevice, artifact: Artifact, threads: int) -> None:
        self.threads = threads
        self._device = device
        self._artifact = artifact
        self._latencies = self._endless(device.latencies_ms)
        device.opened += 1

    @staticmethod
    def _endless(values: Sequence[float]) -> Iterator[float]:
        while True:
            yield from values

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute what the script says."""
        manifest = self._artifact.manifest
        checked_inputs(manifest.inputs, inputs)
        self._device._do("run")
        if self._device.outputs is not None:
            return self._device.outputs(inputs)
        return {info.name: np.zeros(info.shape, info.dtype) for info in manifest.outputs}

    def times_ms(self, inputs: Mapping[str, Array], repeat: int) -> list[float]:
        """Return the next `repeat` latencies."""
        self._device._do("times", repeat)
        return [next(self._latencies) for _ in range(repeat)]

    def layer_times_ms(self, inputs: Mapping[str, Array], repeat: int) -> npt.NDArray[np.float64]:
        """Share each latency evenly among the layers."""
        self._device._do("layers", repeat)
        count = len(self._artifact.manifest.layers)
        return np.asarray([[next(self._latencies) / count] * count for _ in range(repeat)])

    def layer_outputs(
        self, inputs: Mapping[str, Array], replace: LayerReplacement | None = None
    ) -> list[Array]:
        """Return what the script says of every layer."""
        self._device._do("layers")
        if self._device.layer_outputs is not None:
            return self._device.layer_outputs(inputs)
        return [np.zeros(layer.shape, np.float32) for layer in self._artifact.manifest.layers]

    def memory(self) -> Memory | None:
        """Return what the script says."""
        return self._device.memory

    def close(self) -> None:
        """Count the executor as closed."""
        self._device.opened -= 1

    def __enter__(self) -> FakeExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
