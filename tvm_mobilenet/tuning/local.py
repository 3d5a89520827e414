"""Measuring on this machine, in a process of its own that a candidate may crash or hang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.compute_thread import resolve_threads
from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.tasks import floor_ms
from tvm_mobilenet.tuning.workers import WorkerProcess

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["LocalMeasurer"]

_COLD_SHARE = 2
"""Copies of the weights fill so many times the second-level caches of all cores."""
_TIMEOUT_S = 20.0
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class LocalMeasurer:
    """This machine; see `Measurer`.

    Args:
        target: the target that describes it.
        threads: how many threads compute; None for as many as the target has cores.
        cache: `cold` for weights from beyond the cores' caches, `warm` for always the same.
        timeout_s: after so long a candidate is taken to hang.

    Raises:
        SpecError: a number of threads that this machine does not have.
    """

    cost: Literal["latency", "instructions"] = "latency"
    is_exact = False
    is_here = True
    slots = 1

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
        self._worker = WorkerProcess("tvm_mobilenet.tuning.measuring:LocalKernels", settings)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record."""
        governor = _GOVERNOR.read_text("ascii").strip() if _GOVERNOR.is_file() else None
        return {
            "device": self._target.description,
            "governor": governor,
            "cost": self.cost,
            "is_emulated": False,
        }

    def floor(self, workload: TunableWorkload) -> float:
        """Return the milliseconds that no kernel can beat, at the machine's measured peak."""
        return floor_ms(workload, self._target.cpu, self._peak_gflops, self.threads)

    @cached_property
    def _peak_gflops(self) -> float:
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
            cost=answer["cost_ms"],
            repeats=answer["repeats"],
            is_tight=answer["is_tight"],
            error=answer["error_max"],
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
