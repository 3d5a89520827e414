"""The search that ours is compared with: MetaSchedule's stock rules, under the same conditions.

MetaSchedule proposes; candidates are built by our processes and measured by our measurer, within
our budget. What it finds is recorded as of the family `stock` and never accepted.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import TuningError, UsageError
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.schedule.workload import ConvWorkload, MatmulWorkload, SeparableWorkload
from tvm_mobilenet.tuning.budget import Budget, Purse
from tvm_mobilenet.tuning.ledger import Ledger
from tvm_mobilenet.tuning.measurer import Entrant, Measurer, unit
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.report import TaskReport, TuningReport
from tvm_mobilenet.tuning.state import FADING, Candidate
from tvm_mobilenet.tuning.stock_plan import FAMILY, StockPlan
from tvm_mobilenet.tuning.store import Reading, Store
from tvm_mobilenet.tuning.tasks import Task
from tvm_mobilenet.tuning.workers import Builds, CandidateError, WorkerProcess

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["BATCH", "POPULATION", "StockTuner", "check_stock_is_there", "stock_tasks"]

logger = logging.getLogger(__name__)

POPULATION = 64
"""Of the evolutionary search; MetaSchedule's own is 512, and takes a minute of a loaded processor
for one proposal."""
BATCH = 8
"""Candidates of one proposal, as in our rounds; MetaSchedule's own is 64."""
_PROPOSE_TIMEOUT_S = 600.0


def check_stock_is_there() -> None:
    """Refuse where MetaSchedule's cost model is missing.

    Raises:
        UsageError: xgboost is not installed.
    """
    if importlib.util.find_spec("xgboost") is None:
        raise UsageError(
            "space stock: MetaSchedule's cost model needs xgboost, which is not installed; "
            "pip install 'tvm-mobilenet[stock]'"
        )


def stock_tasks(tasks: Sequence[Task]) -> tuple[list[Task], list[str]]:
    """Return the tasks that stock rules are tried on, and the names of those they are not.

    A pair is two tasks, which is what TVM makes of it; pools and gated products are left out.
    """
    calls: dict[MatmulWorkload | ConvWorkload, int] = {}
    left = []
    halves: list[MatmulWorkload | ConvWorkload]
    for task in tasks:
        if isinstance(task.workload, SeparableWorkload):
            halves = [task.workload.depthwise, task.workload.pointwise]
        elif isinstance(task.workload, MatmulWorkload | ConvWorkload):
            halves = [task.workload]
        else:
            left.append(task.name)
            continue
        for half in halves:
            calls[half] = calls.get(half, 0) + task.calls
    return [Task(FAMILY, workload, count) for workload, count in calls.items()], left


@dataclass
class _State:
    """One task in the course of the search."""

    task: Task
    floor: float
    best: Candidate | None = None
    trials: int = 0
    idle_rounds: int = 0
    stopped: str = ""

    @property
    def promise(self) -> float:
        """Milliseconds of an inference that may still be won, as in our own search."""
        if self.best is None:
            return float("inf") if not self.trials else 0.0
        gap = max(0.0, self.best.cost - self.floor) * self.task.calls
        return gap * FADING**self.idle_rounds


class StockTuner:
    """One search by the stock rules.

    Arguments are those of `Tuner`, and how many `processors` the rules may search with.
    """

    def __init__(
        self,
        *,
        model: str,
        tasks: Sequence[Task],
        target: TargetSpec,
        store: Store,
        reading: Reading,
        measurer: Measurer,
        builders: Builds,
        budget: Budget,
        progress: Progress,
        processors: int,
    ) -> None:
        self._model, self._target = model, target
        self._measurer, self._builders = measurer, builders
        self._budget, self._progress = budget, progress
        self._ledger = Ledger(
            model=model,
            tasks=tasks,
            target=target,
            store=store,
            reading=reading,
            measurer=measurer,
        )
        self._purse = Purse(budget, self._ledger)
        self._tasks = tasks
        self.states: list[_State] = []
        self._built = 0
        self._rules = WorkerProcess(
            "tvm_mobilenet.tuning.stock_rules:StockRules",
            {
                "target": target.model_dump_json(by_alias=True),
                "threads": measurer.threads,
                "population": POPULATION,
                "batch": BATCH,
                "processors": processors,
            },
        )

    def run(self) -> TuningReport:
        """Search until the budget is spent.

        Raises:
            OutputError: the log cannot be written.
            TuningError: the rules cannot be asked at all.
        """
        self._prepare()
        seconds = self._budget.seconds
        self._ledger.begin()
        self._progress.start(
            f"tuning {self._model} by the stock rules",
            seconds if seconds is not None else self._budget.trials,
        )
        before = self._ledger.seconds
        try:
            for state in self.states:
                self._ask({"op": "begin", "workload": workload_to_json(state.task.workload)}, state)
            while self._purse.has_any and (open_ := [s for s in self.states if not s.stopped]):
                self._round(max(open_, key=lambda s: s.promise))
                self._progress.advance(
                    self._ledger.seconds - before if seconds is not None else 0,
                    f"{self._ledger.trials} candidates",
                )
                before = self._ledger.seconds
        finally:
            self._ledger.write()
            self._rules.close()
        report = self.report()
        self._progress.done(f"{report.trials} candidates of the stock rules")
        return report

    def _prepare(self) -> None:
        self.states = [_State(t, self._measurer.floor(t.workload)) for t in self._tasks]

    def _ask(self, message: dict[str, Any], state: _State) -> dict[str, Any]:
        try:
            return self._rules.request({"task": state.task.key, **message}, _PROPOSE_TIMEOUT_S)
        except CandidateError as err:
            raise TuningError(f"MetaSchedule, asked about {state.task.name}: {err}") from err

    def _round(self, state: _State) -> None:
        """Have one proposal built and measured, and tell the rules what it took."""
        found = self._ask({"op": "propose"}, state)["candidates"]
        if not found:
            state.stopped = "nothing more was proposed"
            return
        candidates = [
            Candidate(StockPlan(trace=one["trace"], packed=tuple(one["packed"]))) for one in found
        ]
        builds = [self._builders.submit({"module": one["module"]}) for one in found]
        wait(builds)
        self._built += len(builds)
        before = state.best.cost if state.best else float("inf")
        workload = workload_to_json(state.task.workload)
        with self._builders.quiet():
            for candidate, build in zip(candidates, builds, strict=True):
                if not self._purse.has_any:
                    break
                try:
                    candidate.library = build.result()["library"]
                    entrant = Entrant(workload, plan_to_json(candidate.plan), candidate.library)
                    best = state.best.cost if state.best else None
                    candidate.figures = self._measurer.measure(entrant, best)
                except CandidateError as err:
                    candidate.note = str(err)
                candidate.library = ""
                state.trials += 1
                self._ledger.count(state.task, candidate)
                if candidate.cost < (state.best.cost if state.best else float("inf")):
                    state.best = candidate
        self._ledger.write()
        now = state.best.cost if state.best else float("inf")
        state.idle_rounds = 0 if now < before else state.idle_rounds + 1
        costs = [c.cost if c.figures else None for c in candidates]
        self._ask({"op": "learn", "costs": costs}, state)

    def report(self, *, is_dry_run: bool = False) -> TuningReport:
        """Sum up the search."""
        if not self.states:
            self._prepare()
        ledger = self._ledger
        return TuningReport(
            model=self._model,
            target=self._target.name,
            threads=self._measurer.threads,
            unit=unit(self._measurer.cost),
            log=ledger.path,
            tasks=tuple(
                TaskReport(
                    name=state.task.name,
                    calls=state.task.calls,
                    untuned=None,
                    best=state.best.cost if state.best else None,
                    ratio=None,
                    floor=state.floor,
                    trials=state.trials,
                    status="compared" if state.best else "nothing measured",
                    stopped=state.stopped,
                )
                for state in self.states
            ),
            trials=ledger.trials,
            built=self._built,
            seconds=0.0 if is_dry_run else ledger.seconds,
            spent_before={"trials": ledger.spent_trials, "seconds": ledger.spent_seconds},
            is_dry_run=is_dry_run,
            space="stock",
        )
