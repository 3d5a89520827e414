"""What measurers that work through one process of this machine have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.workers import WorkerProcess

__all__ = ["ProcessMeasurer"]


class ProcessMeasurer:
    """Candidates run in a process of their own, which they may crash or hang.

    Args:
        responder: the process's class, as `WorkerProcess` takes it.
        threads: how many threads compute.
        cache: where the weights are when a call begins.
        cold_bytes: what copies of the weights fill where they are to be `cold`.
        timeout_s: after so long a candidate is taken to hang.
    """

    cost: Literal["latency", "instructions"] = "latency"
    is_exact = False
    is_here = True
    slots = 1

    def __init__(
        self,
        responder: str,
        *,
        threads: int,
        cache: Literal["cold", "warm"],
        cold_bytes: int,
        timeout_s: float,
    ) -> None:
        self.threads = threads
        self.cache: Literal["cold", "warm"] = cache
        self._timeout_s = timeout_s
        settings = {"seed": 0, "cold_bytes": cold_bytes if cache == "cold" else 0}
        self._worker = WorkerProcess(responder, settings)

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check and time one candidate.

        Raises:
            CandidateError: it does not load, crashed, hung, or its result is wrong.
        """
        answer = self.ask(
            {
                "op": "measure",
                "workload": entrant.workload,
                "plan": entrant.plan,
                "library": entrant.library,
                "threads": self.threads,
                "best_ms": best,
            }
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
        answer = self.ask(
            {
                "op": "contest",
                "workload": entrants[0].workload,
                "entries": [{"plan": e.plan, "library": e.library} for e in entrants],
                "rounds": rounds,
                "threads": threads,
                "seed": seed,
            }
        )
        times: list[list[float]] = answer["times_ms"]
        return times

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have the process answer one request, within the time that a candidate has."""
        return self._worker.request(request, self._timeout_s)

    def close(self) -> None:
        """End the process."""
        self._worker.close()
