"""Measuring on this machine's OpenCL device, in a process of its own that a candidate may crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.workers import WorkerProcess

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["OpenCLMeasurer"]

_TIMEOUT_S = 60.0
"""A driver builds a kernel at its first launch, and for each shape of its work-groups."""
_COLD_BYTES = 8 << 20
"""Copies of the weights fill about so much: more than the last cache of a small GPU."""


class OpenCLMeasurer:
    """The first OpenCL device of this machine; see `Measurer`.

    Args:
        target: the target that describes it.
        cache: `cold` for weights from copies in turn, `warm` for always the same.
        timeout_s: after so long a candidate is taken to hang.
    """

    cost: Literal["latency", "instructions"] = "latency"
    is_exact = False
    is_here = True
    slots = 1

    def __init__(
        self,
        target: TargetSpec,
        *,
        cache: Literal["cold", "warm"] = "cold",
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.threads = target.cpu.cores
        """Of the processor; a device that shares it with the builders is disturbed by them."""
        self.cache: Literal["cold", "warm"] = cache
        self._timeout_s = timeout_s
        settings = {"seed": 0, "cold_bytes": _COLD_BYTES if cache == "cold" else 0}
        self._worker = WorkerProcess("tvm_mobilenet.tuning.opencl_kernels:OpenCLKernels", settings)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record; the driver is asked once."""
        answer = self._worker.request({"op": "describe"}, self._timeout_s)
        return {
            "device": answer["device"],
            "governor": None,
            "cost": self.cost,
            "is_emulated": False,
        }

    def floor(self, workload: TunableWorkload) -> float:
        """Return 0: what a driver's device can do at best is not known."""
        return 0.0

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check and time one candidate.

        Raises:
            CandidateError: it does not build on the device, crashed, hung, or its result is wrong.
        """
        answer = self._worker.request(
            {
                "op": "measure",
                "workload": entrant.workload,
                "plan": entrant.plan,
                "library": entrant.library,
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
                "seed": seed,
            },
            self._timeout_s,
        )
        times: list[list[float]] = answer["times_ms"]
        return times

    def close(self) -> None:
        """End the process."""
        self._worker.close()
