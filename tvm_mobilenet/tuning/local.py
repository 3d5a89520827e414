"""Measuring on this machine, in a process of its own that a candidate may crash or hang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tvm_mobilenet.compute_thread import resolve_threads
from tvm_mobilenet.tuning.workers import WorkerProcess

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["Entrant", "Figures", "LocalMeasurer", "Measurer"]

_COLD_SHARE = 2
"""Copies of the weights fill so many times the second-level caches of all cores."""
_TIMEOUT_S = 20.0
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Entrant:
    """A built candidate: what is computed, how, and the library in base 64."""

    workload: Mapping[str, Any]
    plan: Mapping[str, Any]
    library: str


@dataclass(frozen=True)
class Figures:
    """What measuring one candidate gave."""

    cost: float
    """Milliseconds a call, or millions of instructions."""
    repeats: int
    is_tight: bool
    error: float
    """Largest difference to the reference."""


class Measurer(Protocol):
    """Something that candidates can be measured on: this machine, or a board.

    `CandidateError` from either method rejects the candidate; any other error ends the search.
    """

    @property
    def threads(self) -> int:
        """How many threads compute."""

    @property
    def cache(self) -> Literal["cold", "warm"]:
        """Where the weights are when a call begins."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """`device`, `governor`, `cost` and `is_emulated`, as `Conditions` has them."""

    def peak_gflops(self) -> float:
        """Return what the threads can do at all."""

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check a candidate's result, then measure it; less carefully where `best` is far off."""

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        """Measure candidates of one workload turn by turn; returns each one's cost a round."""

    def close(self) -> None:
        """Let go of the device."""


class LocalMeasurer:
    """This machine.

    Args:
        target: the target that describes it.
        threads: how many threads compute; None for as many as the target has cores.
        cache: `cold` for weights from beyond the cores' caches, `warm` for always the same.
        timeout_s: after so long a candidate is taken to hang.

    Raises:
        SpecError: a number of threads that this machine does not have.
    """

    def __init__(
        self,
        target: TargetSpec,
        *,
        threads: int | None = None,
        cache: Literal["cold", "warm"] = "cold",
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._target = target
        self.threads = resolve_threads(threads or target.cpu.cores)
        self.cache: Literal["cold", "warm"] = cache
        self._timeout_s = timeout_s
        cold_bytes = _COLD_SHARE * target.cpu.l2_kib * 1024 * target.cpu.cores
        settings = {"seed": 0, "cold_bytes": cold_bytes if cache == "cold" else 0}
        self._worker = WorkerProcess("measure", settings)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record."""
        governor = _GOVERNOR.read_text("ascii").strip() if _GOVERNOR.is_file() else None
        return {
            "device": self._target.description,
            "governor": governor,
            "cost": "latency",
            "is_emulated": False,
        }

    def peak_gflops(self) -> float:
        """Measure the machine's peak."""
        from tvm_mobilenet.peak import measure_peak

        return measure_peak(self._target, self.threads).gflops

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check and time one candidate.

        Raises:
            CandidateError: it crashed, hung, or its result is wrong.
        """
        answer = self._worker.request(
            {
                "op": "measure",
                "workload": entrant.workload,
                "plan": entrant.plan,
                "library": entrant.library,
                "threads": self.threads,
                "best_ms": best,
            },
            self._timeout_s,
        )
        return Figures(
            answer["cost_ms"], answer["repeats"], answer["is_tight"], answer["error_max"]
        )

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        """Time candidates turn by turn, over memory that is allocated anew.

        Raises:
            CandidateError: one of them crashed, hung, or its result is wrong.
        """
        answer = self._worker.request(
            {
                "op": "contest",
                "workload": entrants[0].workload,
                "entries": [{"plan": e.plan, "library": e.library} for e in entrants],
                "rounds": rounds,
                "threads": threads,
                "seed": seed,
            },
            self._timeout_s,
        )
        times: list[list[float]] = answer["times_ms"]
        return times

    def close(self) -> None:
        """End the process."""
        self._worker.close()
