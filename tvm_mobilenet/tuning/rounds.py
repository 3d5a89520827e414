"""Having the candidates of a round built, and measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tvm_mobilenet.tuning.budget import Purse
from tvm_mobilenet.tuning.ledger import Ledger
from tvm_mobilenet.tuning.measurer import Measurer
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.search import CostModel
from tvm_mobilenet.tuning.state import Candidate, TaskState
from tvm_mobilenet.tuning.workers import Builds, CandidateError

__all__ = ["Round", "Rounds"]

logger = logging.getLogger(__name__)

_INSTANT = 1e-3
"""Seconds below which no candidate is counted."""


@dataclass
class Round:
    """Candidates of one task on their way."""

    state: TaskState
    candidates: list[Candidate]
    builds: list[Future[dict[str, Any]]]


class Rounds:
    """What builds and measures, and who is told.

    Args:
        builders: what builds.
        measurer: what measures, several at once where it has several devices.
        purse: whether there is budget for another candidate.
        ledger: told what became of each.
        costs: learns from each.
        show: told which task a candidate was of.
    """

    def __init__(
        self,
        *,
        builders: Builds,
        measurer: Measurer,
        purse: Purse,
        ledger: Ledger,
        costs: CostModel,
        show: Callable[[TaskState], None],
    ) -> None:
        self._builders = builders
        self._measurer = measurer
        self._purse = purse
        self._ledger = ledger
        self._costs = costs
        self._show = show
        self._slots = ThreadPoolExecutor(measurer.slots) if measurer.slots > 1 else None
        self.built = 0
        """Builds that ended."""

    def close(self) -> None:
        """Begin nothing more."""
        if self._slots is not None:
            self._slots.shutdown(wait=False, cancel_futures=True)

    def submit(self, state: TaskState, candidates: list[Candidate]) -> Round:
        """Have candidates built."""
        workload = workload_to_json(state.task.workload)
        builds = [
            self._builders.submit({"workload": workload, "plan": plan_to_json(c.plan)})
            for c in candidates
        ]
        for build in builds:
            build.add_done_callback(self._count_build)
        return Round(state, candidates, builds)

    def _count_build(self, build: Future[dict[str, Any]]) -> None:
        if not build.cancelled():
            self.built += 1

    def measure(self, round_: Round) -> list[Candidate]:
        """Measure candidates, as many at once as there are devices; returns those that stand."""
        if self._slots is None:
            for candidate, build in zip(round_.candidates, round_.builds, strict=True):
                self._note(round_.state, candidate, self._try(round_.state, candidate, build))
        else:
            tries = [
                self._slots.submit(self._try, round_.state, candidate, build)
                for candidate, build in zip(round_.candidates, round_.builds, strict=True)
            ]
            for candidate, attempt in zip(round_.candidates, tries, strict=True):
                self._note(round_.state, candidate, attempt.result())
        return [candidate for candidate in round_.candidates if candidate.figures is not None]

    def _try(self, state: TaskState, candidate: Candidate, build: Future[dict[str, Any]]) -> bool:
        """Measure one candidate, if there is budget for it; tell whether it was tried."""
        if not self._purse.has_any and candidate is not state.start:
            build.cancel()
            return False
        try:
            # Not a moment's wait: builders may be held back just now.
            built = build.result(0)
            candidate.library, candidate.spills = built["library"], built.get("spills", 0)
            if candidate is not state.start and candidate.spills > state.start.spills:
                raise CandidateError(
                    f"it spills: {candidate.spills} vectors are stored and loaded again in its "
                    f"inner loop, {state.start.spills} in the computed plan's"
                )
            best = None if candidate is state.start else state.incumbent.cost
            begin = time.monotonic()
            candidate.figures = self._measurer.measure(state.entrant(candidate), best)
            took = built.get("seconds", 0.0) + time.monotonic() - begin
            state.trial_seconds = max(_INSTANT, took)
        except CandidateError as err:
            candidate.note = str(err)
            logger.info("%s: %s rejected: %s", state.task.name, candidate.key, err)
        return True

    def _note(self, state: TaskState, candidate: Candidate, was_tried: bool) -> None:
        """Take in what became of a candidate."""
        if not was_tried:
            return
        self._count(state, candidate)
        if candidate.figures is not None:
            state.measured[candidate.key] = candidate
            if candidate is not state.start:
                ratio = candidate.cost / state.start.cost
                self._costs.add(state.task.workload, candidate.plan, ratio)

    def _count(self, state: TaskState, candidate: Candidate) -> None:
        state.known.add(candidate.key)
        state.trials += 1
        self._ledger.count(state.task, candidate)
        self._show(state)
