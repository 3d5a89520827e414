"""The search itself: rounds of candidates, contests between the best, records of everything.

While one round is measured, the next one, of another task where there is one, is being built. A
round ends with its records on the disk, so that whatever ends the search loses one round at most.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING

from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.tuning.budget import Budget, Purse
from tvm_mobilenet.tuning.contest import compete
from tvm_mobilenet.tuning.earlier import learn, recorded_plan
from tvm_mobilenet.tuning.ledger import Ledger
from tvm_mobilenet.tuning.measurer import Measurer, unit
from tvm_mobilenet.tuning.recorded import unfit
from tvm_mobilenet.tuning.records import TrialRecord, canonical
from tvm_mobilenet.tuning.report import TuningReport, overall, task_report
from tvm_mobilenet.tuning.rounds import Round, Rounds
from tvm_mobilenet.tuning.search import CostModel, plan_key, propose
from tvm_mobilenet.tuning.state import Candidate, TaskState
from tvm_mobilenet.tuning.store import Reading, Store
from tvm_mobilenet.tuning.target_space import space_for
from tvm_mobilenet.tuning.tasks import Task
from tvm_mobilenet.tuning.workers import Builds

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["Tuner"]

logger = logging.getLogger(__name__)

ROUND = 8
"""Candidates of one round."""
_FINALISTS = 2
_FINALIST = 1.15
"""A candidate so close to the incumbent may be better, by what a single measurement says."""


class Tuner:
    """One search.

    Args:
        model: name of the model, for people.
        tasks: what to tune.
        target: what for.
        store: where records go.
        reading: what is recorded already, there and elsewhere.
        measurer: what to measure on.
        builders: what builds.
        budget: when to stop.
        progress: told of every candidate.
        seed: of every choice left to chance.
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
        seed: int = 0,
    ) -> None:
        self._model_name = model
        self._target = target
        self._measurer = measurer
        self._builders = builders
        self._budget = budget
        self._progress = progress
        self._rng = random.Random(seed)
        self._costs = CostModel(target.cpu)
        is_split_free = measurer.threads >= target.cpu.cores
        self.states = [
            TaskState(t, space_for(t.workload, target, is_split_free=is_split_free)) for t in tasks
        ]
        self._reading = reading
        self._ledger = Ledger(
            model=model,
            tasks=tasks,
            target=target,
            store=store,
            reading=reading,
            measurer=measurer,
        )
        self._purse = Purse(budget, self._ledger)
        self._rounds = Rounds(
            builders=builders,
            measurer=measurer,
            purse=self._purse,
            ledger=self._ledger,
            costs=self._costs,
            show=self._show,
        )
        self._last_shown = time.monotonic()

    def run(self) -> TuningReport:
        """Search until the budget is spent or nothing more is to be had.

        Raises:
            OutputError: the log cannot be written.
            TuningError: nothing can be built or measured at all.
        """
        ledger, seconds = self._ledger, self._budget.seconds
        ledger.begin()
        self._progress.start(
            f"tuning {self._model_name}", seconds if seconds is not None else self._budget.trials
        )
        self._progress.advance(
            ledger.spent_trials if seconds is None else ledger.spent_seconds,
            "measuring computed plans",
        )
        self._last_shown = time.monotonic()
        try:
            if self._purse.has_any:
                self._measure_starts()
                self._search()
                self._confirm_starts()
        finally:
            # Also of a round that Ctrl-C cuts short.
            ledger.write()
            self._rounds.close()
        report = self.report()
        self._progress.done(
            f"{report.trials} candidates; {report.built_per_s:.1f} built/s, "
            f"{report.candidates_per_s:.1f} measured/s; kernels take "
            f"{100 * overall(self.states):.1f} % of what they did untuned"
        )
        return report

    def report(self, *, is_dry_run: bool = False) -> TuningReport:
        """Sum up the search."""
        ledger = self._ledger
        return TuningReport(
            model=self._model_name,
            target=self._target.name,
            threads=self._measurer.threads,
            unit=unit(self._measurer.cost),
            log=ledger.path,
            tasks=tuple(task_report(state) for state in self.states),
            trials=ledger.trials,
            built=self._rounds.built,
            seconds=0.0 if is_dry_run else ledger.seconds,
            spent_before={"trials": ledger.spent_trials, "seconds": ledger.spent_seconds},
            is_dry_run=is_dry_run,
        )

    # -- what is known before -----------------------------------------------------------------

    def _measure_starts(self) -> None:
        """Measure the computed plans, and the best recorded ones where there are any."""
        by_key: dict[str, list[TrialRecord]] = {}
        for record in self._reading.trials:
            if unfit(record, self._target) is None and self._ledger.is_comparable(record):
                by_key.setdefault(f"{record.family} {canonical(record.workload)}", []).append(
                    record
                )
        rounds = []
        for state in self.states:
            best = recorded_plan(state, by_key.get(state.task.key, []), self._target)
            candidates = [state.start]
            if best is not None and plan_key(best[0]) != state.start.key:
                candidates.append(Candidate(best[0]))
                state.ratio = best[1]
            state.is_confirmed = best is not None
            rounds.append(self._rounds.submit(state, candidates))
        for round_ in rounds:
            state = round_.state
            state.floor = self._measurer.floor(state.task.workload)
            if not self._purse.has_any:
                state.fault = "the budget ended before it was measured"
                continue
            # What is still queued would be held back for as long as it is quiet.
            wait(round_.builds)
            with self._builders.quiet():
                self._rounds.measure(round_)
            if state.start.figures is None:
                state.fault = f"its computed plan cannot be measured: {state.start.note}"
                logger.warning("%s: %s", state.task.name, state.fault)
                continue
            if len(round_.candidates) > 1 and round_.candidates[1].figures is not None:
                state.incumbent = round_.candidates[1]
            else:
                state.ratio = 1.0
            learn(state, by_key.get(state.task.key, []), self._costs)
        self._ledger.write()

    # -- rounds -------------------------------------------------------------------------------

    def _search(self) -> None:
        rounds: deque[Round] = deque()
        try:
            while self._purse.has_any:
                while len(rounds) < 2 and (next_ := self._next_round(rounds)) is not None:
                    rounds.append(next_)
                if not rounds:
                    return
                self._finish(rounds.popleft())
        finally:
            for round_ in rounds:
                for build in round_.builds:
                    build.cancel()

    def _next_round(self, busy: Sequence[Round]) -> Round | None:
        """Begin a round of the task that promises most, not one at work where another is left."""
        at_work = [round_.state for round_ in busy]
        while True:
            open_ = [s for s in self.states if s.is_open]
            free = [s for s in open_ if s not in at_work] or open_
            if not free:
                return None
            state = max(free, key=lambda s: s.promise)
            count = ROUND
            if self._budget.trials is not None:
                planned = sum(len(round_.candidates) for round_ in busy)
                count = min(count, self._purse.trials_left(self._budget.trials) - planned)
                if count <= 0:
                    return None
            in_flight = {c.key for r in busy if r.state is state for c in r.candidates}
            plans = propose(
                state.space,
                state.best_plans(),
                state.known | in_flight,
                count,
                self._costs,
                self._rng,
            )
            if plans:
                return self._rounds.submit(state, [Candidate(plan) for plan in plans])
            if in_flight:
                return None
            state.stopped = "every plan was tried"

    def _finish(self, round_: Round) -> None:
        """Measure a round, let its best compete, and write it all down."""
        state = round_.state
        wait(round_.builds)
        with self._builders.quiet():
            measured = self._rounds.measure(round_)
            close = sorted(
                (c for c in measured if c.cost <= _FINALIST * state.incumbent.cost),
                key=lambda candidate: candidate.cost,
            )[:_FINALISTS]
            has_improved = bool(close) and self._purse.has_any and self._compete(state, close)
        state.finish_round(has_improved=has_improved)
        state.forget_libraries([state.start, state.incumbent])
        self._ledger.write()

    def _compete(self, state: TaskState, finalists: list[Candidate]) -> bool:
        return compete(state, finalists, self._measurer, self._ledger, self._rng)

    def _confirm_starts(self) -> None:
        """Write down that a computed plan stood against all that was tried."""
        for state in self.states:
            if not state.fault and not state.is_confirmed and state.rounds:
                self._ledger.note(state.task, state.start, "accepted", 1.0)
                state.is_confirmed = True

    def _show(self, state: TaskState) -> None:
        now = time.monotonic()
        amount = 1.0 if self._budget.seconds is None else now - self._last_shown
        self._last_shown = now
        seconds = max(1e-9, self._ledger.seconds)
        left = max(0.0, self._purse.seconds_left)
        best, untuned = state.incumbent.cost, state.start.cost
        share = f"{100 * best / untuned:.1f} % of untuned" if state.start.figures else "untuned: ?"
        over = f", {best / state.floor:.2f}x its floor" if state.floor else ""
        self._progress.advance(
            amount,
            f"{state.task.name}: best {best:.3f}, {share}{over}; all "
            f"{100 * overall(self.states):.1f} %; {self._rounds.built / seconds:.1f} built/s, "
            f"{self._ledger.trials / seconds:.1f} measured/s; "
            f"{left // 60:.0f}:{left % 60:02.0f} left",
        )
