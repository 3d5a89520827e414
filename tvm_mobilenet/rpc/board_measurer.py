"""Boards as what a search measures on: a process and a session for each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.errors import DeviceError, DeviceUnreachableError, UsageError
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.rpc.tracker_client import tracker_state
from tvm_mobilenet.runtime_libs import target_machine
from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.tasks import floor_ms, products_per_fma
from tvm_mobilenet.tuning.workers import WorkerProcess

if TYPE_CHECKING:
    from tvm_mobilenet.rpc.board_device import BoardDevice
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["BoardMeasurer", "count_boards"]

logger = logging.getLogger(__name__)

_COLD_SHARE = 2
"""Copies of the weights fill so many times the second-level caches of all cores."""
_GPU_COLD_BYTES = 8 << 20
"""The same for a GPU: more than the last cache of a small one."""
_REST_S = 10.0
"""A board that throttled cools so long before it is measured again."""
_RETRY_S = 15.0
"""Between two attempts to reach a board that was lost."""
_PATIENCE_S = 60.0
"""A search waits so long for the last board to come back."""


@dataclass
class _Board:
    worker: WorkerProcess
    is_busy: bool = False
    lost: str = ""
    """Why it cannot be reached; empty while it can."""
    again_at: float = 0.0
    """When a lost one is tried again."""


class BoardMeasurer:
    """A board, or several of one kind that measure at once; see `Measurer`.

    A board that is lost is left out and tried again now and then, and its candidate measured
    on another. When all are lost, and stay so, the search ends.

    Args:
        target: what the boards are.
        device: how they are reached.
        boards: how many there are, where a tracker lends them.
        threads: how many threads compute; None for as many as the target has cores, or 1 where
            instructions are counted.
        cache: `cold` for weights from beyond the cores' caches, `warm` for always the same.
        cost: `latency`, or `instructions` on emulated boards.
        cpus: the processors to compute on; empty for the board's choice.
        rest_s: how long a board rests that throttled.
        patience_s: how long the last board is waited for.

    Raises:
        UsageError: instructions are to be counted with several threads, on a GPU, or for a target
            whose file says nothing of what they cost.
    """

    is_here = False

    def __init__(
        self,
        target: TargetSpec,
        device: BoardDevice,
        *,
        boards: int = 1,
        threads: int | None = None,
        cache: Literal["cold", "warm"] = "cold",
        cost: Literal["latency", "instructions"] = "latency",
        cpus: Sequence[int] = (),
        rest_s: float = _REST_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._target = target
        self._weights = _weights(target, threads) if cost == "instructions" else None
        self.cost: Literal["latency", "instructions"] = cost
        self.is_exact = cost == "instructions"
        self.threads = 1 if self.is_exact else threads or target.cpu.cores
        self.cache: Literal["cold", "warm"] = "warm" if self.is_exact else cache
        self.slots = boards
        self._patience_s = patience_s
        cold_bytes = _COLD_SHARE * target.cpu.l2_kib * 1024 * target.cpu.cores
        if target.gpu is not None:
            cold_bytes = _GPU_COLD_BYTES
        settings = {
            "address": str(device.address) if device.address else None,
            "tracker": str(device.tracker) if device.tracker else None,
            "key": device.key,
            "auth_key": (device.auth_key or b"").hex(),
            "timeouts": asdict(device.timeouts),
            "machine": target_machine(target),
            "uses_opencl": target.gpu is not None,
            "threads": self.threads,
            "cpus": list(cpus),
            "cost": cost,
            "seed": 0,
            "cold_bytes": cold_bytes if self.cache == "cold" else 0,
            "rest_s": rest_s,
        }
        # Every step on the board has its own time-out; this is for the process itself.
        self._timeout_s = 20 * device.timeouts.step_s + device.timeouts.queue_s
        self._boards = [
            _Board(WorkerProcess("tvm_mobilenet.rpc.board_kernels:BoardKernels", settings))
            for _ in range(boards)
        ]
        self._changed = threading.Condition()
        self._is_closed = False

    @cached_property
    def board_facts(self) -> BoardFacts:
        """What the first board that answers says of itself.

        Raises:
            DeviceError: none does, or it is not what the target describes.
            UsageError: instructions are to be counted, and it is no emulated one.
        """
        facts = BoardFacts.of(self._said["facts"])
        if self.is_exact and not facts.emulated:
            raise UsageError(
                "cost instructions: the board is a real one and counts none; give --emulated, or "
                "tune by --cost latency"
            )
        return facts

    @cached_property
    def _said(self) -> Mapping[str, Any]:
        return self._ask({"op": "facts"})

    @property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record."""
        facts = self.board_facts
        board = facts.board or facts.cpu if not facts.emulated else self._target.description
        gpu = self._said["gpu"]
        return {
            "device": f"{board}: {gpu}" if gpu else board,
            "governor": ", ".join(facts.governors) or None,
            "cost": self.cost,
            "is_emulated": facts.emulated,
            "weights": self._weights,
        }

    def floor(self, workload: TunableWorkload) -> float:
        """Return what no kernel can go below: its multiply-adds, at the full clock or counted.

        Of a GPU it is 0, not known: a board's driver need not report the clock that it runs at.
        """
        if self._target.gpu is not None:
            return 0.0
        cpu = self._target.cpu
        if self._weights is not None:
            fmas = workload.macs / products_per_fma(workload, cpu)
            return fmas * self._weights["fma"] / 1e6
        clocks = [c.max_mhz for c in self.board_facts.cpus if c.max_mhz]
        clock_mhz = max(clocks, default=float(cpu.freq_mhz))
        lanes = cpu.lanes("float32")
        peak = 2 * lanes * cpu.fma_units * self.threads * clock_mhz / 1e3
        return floor_ms(workload, cpu, peak, self.threads)

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check and measure one candidate on the next board that is free.

        Raises:
            CandidateError: it crashed or hung the board's session, or its result is wrong.
            DeviceError: no board is left.
        """
        answer = self._ask(
            {
                "op": "measure",
                "workload": entrant.workload,
                "plan": entrant.plan,
                "library": entrant.library,
                "threads": self.threads,
                "best_ms": None if self.is_exact else best,
            }
        )
        counts = answer.get("counts")
        return Figures(
            cost=answer["cost_ms"] if counts is None else self._weighted(counts),
            repeats=answer["repeats"],
            is_tight=answer["is_tight"],
            error=answer["error_max"],
            counts=counts,
            clock_mhz=answer.get("clock_mhz"),
            temperature_c=answer.get("temperature_c"),
            throttled=answer.get("throttled", ""),
        )

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        """Time candidates turn by turn, all on one board.

        Raises:
            CandidateError: one of them crashed or hung the session, or its result is wrong.
            DeviceError: no board is left.
        """
        answer = self._ask(
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

    def close(self) -> None:
        """End the processes; the boards are free for others."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for board in self._boards:
            if board.is_busy:
                board.worker.kill()
        for board in self._boards:
            board.worker.close()

    def _weighted(self, counts: Mapping[str, int]) -> float:
        assert self._weights is not None
        return sum(count * self._weights[name] for name, count in counts.items()) / 1e6

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Have a board answer; another one where it is lost meanwhile."""
        waited_from = time.monotonic()
        while True:
            board = self._take(waited_from)
            lost = ""
            try:
                answer = board.worker.request(message, self._timeout_s)
                lost = answer.get("lost", "")
            finally:
                self._give_back(board, lost)
            if "unfit" in answer:
                raise DeviceError(answer["unfit"])
            if not lost:
                return answer

    def _take(self, waited_from: float) -> _Board:
        """Wait for a board that is free.

        Raises:
            DeviceUnreachableError: all are lost, for too long.
        """
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                free = [b for b in self._boards if not b.is_busy and b.again_at <= now]
                if free:
                    # One that is well before one that may have come back.
                    board = min(free, key=lambda b: bool(b.lost))
                    board.is_busy = True
                    return board
                all_lost = all(b.lost for b in self._boards)
                if all_lost and now - waited_from > self._patience_s:
                    raise DeviceUnreachableError(
                        f"{self._boards[0].lost}; it did not come back within "
                        f"{self._patience_s:g} s"
                    )
                self._changed.wait(0.2 if any(b.lost for b in self._boards) else None)
        raise DeviceError("the search was ended")

    def _give_back(self, board: _Board, lost: str) -> None:
        with self._changed:
            if lost and not board.lost:
                logger.warning("a board was lost: %s", lost)
            elif board.lost and not lost:
                logger.warning("a board came back")
            board.lost = lost
            board.again_at = time.monotonic() + _RETRY_S if lost else 0.0
            board.is_busy = False
            self._changed.notify_all()


def count_boards(device: BoardDevice) -> int:
    """Return how many boards a device stands for: those that a tracker has under the key.

    Raises:
        DeviceError: the tracker does not answer, or has none.
    """
    if device.tracker is None:
        return 1
    state = tracker_state(device.tracker, auth_key=device.auth_key, timeouts=device.timeouts)
    keys = [board.key for board in state.boards]
    count = keys.count(device.key or "")
    if not count:
        known = ", ".join(sorted(set(keys))) or "none at all"
        raise DeviceError(f"tracker {device.tracker} has no board {device.key!r}; it has: {known}")
    return count


def _weights(target: TargetSpec, threads: int | None) -> dict[str, float]:
    if target.gpu is not None:
        raise UsageError(
            f"cost instructions: {target.name} is for a GPU, and nothing here counts its "
            "instructions; tune by --cost latency on the board"
        )
    if threads not in (None, 1):
        raise UsageError(
            f"cost instructions with {threads} threads: threads that wait for each other spin, and "
            "how long is chance; count with one"
        )
    if target.instruction_weights is None:
        raise UsageError(
            f"cost instructions: target {target.name} says nothing of what instructions cost; add "
            "[instruction_weights] to its file (docs/targets.md)"
        )
    return target.instruction_weights.by_class()
