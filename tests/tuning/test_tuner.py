"""The search: measured for real on this machine, and with a measurer that goes wrong as told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.conftest import DEPTHWISE, MATMUL
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.local import Entrant, Figures
from tvm_mobilenet.tuning.records import canonical
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.store import Store
from tvm_mobilenet.tuning.tasks import Task
from tvm_mobilenet.tuning.tuner import Budget, Tuner

TASKS = [Task("pointwise", MATMUL, 3), Task("depthwise", DEPTHWISE, 1)]


class FakeBuilds:
    """A pool that has built everything already."""

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        done: Future[dict[str, Any]] = Future()
        done.set_result({"library": canonical(message["plan"])})
        return done

    def close(self) -> None:
        pass


class FakeMeasurer:
    """A device on which each plan costs what `cost` says, or goes wrong as it raises."""

    threads = 2
    cache = "cold"
    facts: Mapping[str, Any] = {
        "device": "a fake",
        "governor": None,
        "cost": "latency",
        "is_emulated": False,
    }

    def __init__(self, cost: Callable[[Mapping[str, Any]], float]) -> None:
        self.cost = cost
        self.measured: list[str] = []

    def peak_gflops(self) -> float:
        return 100.0

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        self.measured.append(canonical([entrant.workload, entrant.plan]))
        return Figures(self.cost(entrant.plan), 10, True, 1e-6)

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        return [[self.cost(entrant.plan)] * rounds for entrant in entrants]

    def close(self) -> None:
        pass


def tuner(
    store: Store,
    measurer: Any,
    trials: int,
    tasks: Sequence[Task] = TASKS,
    builders: Any = None,
) -> Tuner:
    return Tuner(
        model="a model",
        tasks=tasks,
        target=load_target("host"),
        store=store,
        reading=store.read("host"),
        measurer=measurer,
        builders=builders or FakeBuilds(),
        budget=Budget(trials=trials),
        progress=NoProgress(),
    )


def tall_is_fast(plan: Mapping[str, Any]) -> float:
    return 2.0 - 0.1 * float(plan.get("row_tile", 0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "logs")


def accepted(store: Store) -> list[Any]:
    return [r for r in store.read("host").trials if r.verdict == "accepted"]


def test_the_search_finds_the_best_plan_and_says_so(store: Store, host: TargetSpec):
    report = tuner(store, FakeMeasurer(tall_is_fast), 200).run()
    space = Space(MATMUL, host.cpu)
    tiles: list[Any] = list(space.neighbours(space.start))
    best = max(plan.row_tile for plan in tiles)
