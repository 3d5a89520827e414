"""One timed series of inferences: what is asked for, what comes back, the order of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.facts import BoardFacts, HostFacts

if TYPE_CHECKING:
    from tvm_mobilenet.protocols import Executor

__all__ = ["BoardRecord", "Memory", "Series", "SeriesRequest", "Steps", "take_steps"]

PROFILE_RUNS = 50

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRequest:
    """What to time."""

    threads: int | None
    """How many threads compute; None for the device's choice."""
    cpus: tuple[int, ...] = ()
    """The processors to compute on; empty for the device's choice."""
    warmup: int
    """Inferences before it counts."""
    repeat: int
    """Inferences that count."""
    profile: bool = False
    """Time every layer too."""
    cool_down_s: float | None = None
    """Rest between bursts; None for what suits the device."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the process that measured."""

    before_bytes: int
    """With all that runs a model loaded (TVM's runtime, Python where there is one), but no model.
    """
    peak_bytes: int
    """The most there was from then on, up to the end of the first inference."""
    now_bytes: int = 0
    """What was there when one asked."""
    steps: tuple[tuple[str, int, int], ...] = ()
    """The steps of a run in their order: what was there at the end of each, and the most so far."""

    @property
    def added_bytes(self) -> int:
        """What loading and running the model took."""
        return self.peak_bytes - self.before_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "before_bytes": self.before_bytes,
            "peak_bytes": self.peak_bytes,
            "added_bytes": self.added_bytes,
            "steps": [
                {"step": step, "resident_bytes": now, "peak_bytes": peak}
                for step, now, peak in self.steps
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What an executor's inferences gave, times in milliseconds."""

    load_ms: float
    first_run_ms: float
    memory: Memory | None
    warmup_ms: tuple[float, ...]
    values_ms: tuple[float, ...]
    layer_times_ms: tuple[tuple[float, ...], ...] | None
    """One row an inference, one value a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRecord:
    """Which board measured, how it was set up, and how it was before and after."""

    name: str
    address: str
    key: str | None
    """Under which a tracker knows it; None where it was addressed directly."""
    has_agent: bool
    """False for a stock server, which says nothing of its board."""
    threads: int
    cpus: tuple[int, ...]
    """The processors that computed; empty where the board chose and does not say."""
    cool_down_s: float
    """Rest between bursts of inferences."""
    before: BoardFacts | None
    after: BoardFacts | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **asdict(self),
            "cpus": list(self.cpus),
            "before": self.before.to_dict() if self.before else None,
            "after": self.after.to_dict() if self.after else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series with all that belongs to it."""

    steps: Steps
    threads: int
    host: HostFacts
    tvm: str
    """Version of the TVM that ran the library."""
    board: BoardRecord | None = None
    """None for this machine."""
    warnings: tuple[str, ...] = ()
    """What about the device makes the figures doubtful."""


def take_steps(
    executor: Executor,
    inputs: Mapping[str, Array],
    request: SeriesRequest,
    *,
    burst_s: float | None = None,
    rest: Callable[[float], None] = time.sleep,
) -> Steps:
    """Run, warm up, time, and look inside, in this order.

    Args:
        executor: an opened model that has not run yet.
        inputs: what to feed it.
        request: what to time.
        burst_s: how many seconds of inferences to ask for at a time, with a rest of
            `request.cool_down_s` between; None for all at once.
        rest: how to rest.
    """
    watch = _MemoryWatch(executor)
    watch.look("load")
    begin = time.perf_counter()
    executor.run(inputs)
    first_run_ms = (time.perf_counter() - begin) * 1e3
    watch.look("first run")
    bursts = _Bursts(first_run_ms, burst_s, request.cool_down_s or 0.0, rest)

    def timed(count: int) -> list[float]:
        return executor.times_ms(inputs, count)

    if burst_s is None:
        values = timed(request.warmup + request.repeat)
        warmup, values = values[: request.warmup], values[request.warmup :]
    else:
        warmup = bursts.take(timed, request.warmup)
        values = bursts.take(timed, request.repeat)
    watch.look("series")
    layers: tuple[tuple[float, ...], ...] | None = None
    if request.profile:
        runs = min(request.repeat, PROFILE_RUNS)

        def looked_into(count: int) -> list[tuple[float, ...]]:
            rows: npt.NDArray[np.float64] = executor.layer_times_ms(inputs, count)
            return [tuple(row) for row in rows.tolist()]

        bursts.take(looked_into, max(1, min(request.warmup, runs)))
        layers = tuple(bursts.take(looked_into, runs))
        watch.look("profile")
    return Steps(
        load_ms=executor.load_ms,
        first_run_ms=first_run_ms,
        memory=watch.memory,
        warmup_ms=tuple(warmup),
        values_ms=tuple(values),
        layer_times_ms=layers,
    )


class _MemoryWatch:
    """Asks for an executor's memory between the steps of a run."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._steps: list[tuple[str, int, int]] = []
        self._of_model: Memory | None = None

    def look(self, step: str) -> None:
        """Note what there is at the end of `step`; nothing where it is not known."""
        found = self._executor.memory()
        if found is not None:
            self._steps.append((step, found.now_bytes, found.peak_bytes))
            if step in ("load", "first run"):
                self._of_model = found

    @property
    def memory(self) -> Memory | None:
        """What loading and the first run took: nothing of the measuring itself is in it."""
        return self._of_model and replace(self._of_model, steps=tuple(self._steps))


class _Bursts:
    """Splits a number of inferences so that none of the calls is long, and rests between them."""

    def __init__(
        self, once_ms: float, burst_s: float | None, rest_s: float, rest: Callable[[float], None]
    ) -> None:
        self._once_ms = once_ms
        self._burst_s = burst_s
        self._rest_s = rest_s
        self._rest = rest
        self._began = False

    def take(self, call: Callable[[int], list[Any]], count: int) -> list[Any]:
        values: list[Any] = []
        while len(values) < count:
            if self._began and self._burst_s is not None and self._rest_s > 0:
                self._rest(self._rest_s)
            self._began = True
            size = count - len(values)
            if self._burst_s is not None:
                size = min(size, max(1, int(self._burst_s * 1e3 / max(self._once_ms, 1e-3))))
            begin = time.perf_counter()
            values += call(size)
            self._once_ms = (time.perf_counter() - begin) * 1e3 / size
        return values
