"""What a search writes down: every candidate, and what it has spent of its budget."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

import tvm_mobilenet
from tvm_mobilenet.tuning.measurer import Measurer
from tvm_mobilenet.tuning.recorded import tvm_version
from tvm_mobilenet.tuning.records import (
    WRITER_VERSION,
    AnyRecord,
    Conditions,
    SessionRecord,
    TrialRecord,
    canonical,
    layout_of,
    plan_to_json,
    workload_to_json,
)
from tvm_mobilenet.tuning.state import Candidate
from tvm_mobilenet.tuning.store import Reading, Store
from tvm_mobilenet.tuning.tasks import Task

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["Ledger"]


class Ledger:
    """The records of one search, on their way to the store.

    Args:
        model: name of the model, for people.
        tasks: what is tuned.
        target: what for.
        store: where records go.
        reading: what is recorded already; what equal searches have spent is taken from it.
        measurer: what is measured on.
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
    ) -> None:
        self._model = model
        self._target = target
        self._store = store
        self._measurer = measurer
        self._session = self._session_key(tasks)
        self._pending: list[AnyRecord] = []
        self._unwritten = 0
        mine = [s for s in reading.sessions if s.session == self._session]
        self.spent_trials = sum(s.trials for s in mine)
        """Candidates of earlier runs of this search."""
        self.spent_seconds = sum(s.seconds for s in mine)
        """Seconds of earlier runs of this search."""
        self.trials = 0
        """Candidates of this run."""
        self.begin()

    def begin(self) -> None:
        """Start the clock of this run."""
        self.began = self._last_write = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self.began

    @property
    def path(self) -> str:
        """The file that records go to."""
        return str(self._store.path(self._target.name))

    def count(self, task: Task, candidate: Candidate) -> None:
        """Note a candidate that was measured or rejected; it counts against the budget."""
        self.trials += 1
        self._unwritten += 1
        self.note(task, candidate, "measured" if candidate.figures else "rejected")

    def note(
        self,
        task: Task,
        candidate: Candidate,
        verdict: Literal["measured", "accepted", "rejected"],
        ratio: float | None = None,
    ) -> None:
        """Note what became of a candidate."""
        figures = candidate.figures
        conditions = Conditions(
            **self._measurer.facts,
            threads=self._measurer.threads,
            cache=self._measurer.cache,
            repeats=figures.repeats if figures else 0,
            is_tight=bool(figures and figures.is_tight),
            clock_mhz=figures.clock_mhz if figures else None,
            temperature_c=figures.temperature_c if figures else None,
            throttled=figures.throttled if figures else "",
            date=_now(),
            tvm=tvm_version(),
            tvm_mobilenet=tvm_mobilenet.__version__,
        )
        self._pending.append(
            TrialRecord(
                target=self._target.name,
                fingerprint=self._target.fingerprint(),
                family=task.family,
                workload=workload_to_json(task.workload),
                dtype=task.workload.dtype,
                layout=layout_of(task.workload),
                writer=WRITER_VERSION,
                plan=plan_to_json(candidate.plan),
                verdict=verdict,
                cost=figures.cost if figures else None,
                ratio=ratio,
                error=figures.error if figures else None,
                counts=dict(figures.counts) if figures and figures.counts else None,
                note=candidate.note,
                conditions=conditions,
            )
        )

    def write(self) -> None:
        """Put on the disk what was noted, and what was spent, since the last time.

        Raises:
            OutputError: the log cannot be written.
        """
        if not self._pending:
            return
        now = time.monotonic()
        session = SessionRecord(
            session=self._session,
            model=self._model,
            fingerprint=self._target.fingerprint(),
            trials=self._unwritten,
            seconds=round(now - self._last_write, 3),
            date=_now(),
        )
        # Taken off first: what cannot be written now cannot be on the way out either.
        records, self._pending, self._unwritten = [*self._pending, session], [], 0
        self._last_write = now
        self._store.append(self._target.name, records)

    def is_comparable(self, record: TrialRecord) -> bool:
        """Tell whether a record was measured in the way that this search measures."""
        how, facts = record.conditions, self._measurer.facts
        return (how.threads, how.cache, how.cost, how.is_emulated, how.weights) == (
            self._measurer.threads,
            self._measurer.cache,
            facts["cost"],
            facts["is_emulated"],
            facts.get("weights"),
        )

    def _session_key(self, tasks: Sequence[Task]) -> str:
        content = [
            self._target.fingerprint(),
            sorted(task.key for task in tasks),
            self._measurer.threads,
            self._measurer.cache,
            self._measurer.facts["cost"],
            self._measurer.facts["is_emulated"],
            *filter(None, [self._measurer.facts.get("weights")]),
        ]
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
