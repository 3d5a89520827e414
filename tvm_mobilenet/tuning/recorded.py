"""The best valid record for each kernel, as the selection of kernels asks for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.workload import TunableWorkload
from tvm_mobilenet.targets import HOST
from tvm_mobilenet.tuning.records import (
    WRITER_VERSION,
    LineError,
    Plan,
    TrialRecord,
    canonical,
    plan_from,
    workload_to_json,
)
from tvm_mobilenet.tuning.store import Problem, Reading, Store, shipped_store, user_store
from tvm_mobilenet.tuning.target_space import fault_for

if TYPE_CHECKING:
    from pathlib import Path

    from tvm_mobilenet.targets import TargetSpec

__all__ = ["RecordedPlans", "best_first", "read_stores", "task_key", "tvm_version", "unfit"]

logger = logging.getLogger(__name__)


def tvm_version() -> str:
    """Return the version of TVM whose code generator is installed."""
    return metadata.version("apache-tvm")


def task_key(family: str, workload: TunableWorkload) -> str:
    """Return what tells one task from another on one target."""
    return f"{family} {canonical(workload_to_json(workload))}"


def unfit(record: TrialRecord, target: TargetSpec) -> str | None:
    """Return why a record says nothing about kernels for `target` made here, or None."""
    if record.fingerprint != target.fingerprint():
        return "it is of another target"
    if record.conditions.tvm != tvm_version():
        return f"it was made with TVM {record.conditions.tvm}, this is {tvm_version()}"
    if record.writer != WRITER_VERSION:
        return f"it is of kernel writers {record.writer}, these are {WRITER_VERSION}"
    return None


def read_stores(target: TargetSpec, logs: Path | str | None = None) -> Reading:
    """Read what the user's store and the shipped one hold for a target.

    For this machine the logs of every target are looked through: one may describe it.
    """
    reading = Reading()
    for store in (user_store(logs), shipped_store()):
        reading += _read(store, target)
    return reading


def _read(store: Store, target: TargetSpec) -> Reading:
    names = store.targets() if target.name == HOST else [target.name]
    reading = Reading()
    for name in names:
        reading += store.read(name)
    return reading


def best_first(records: Iterable[TrialRecord], cores: int) -> list[TrialRecord]:
    """Return the accepted records of one task, the one to trust most first.

    What was timed comes before what was counted, a processor before its emulation, as many threads
    as the target has cores before any other number; then the gain over the computed plan, which
    compares across sessions as a time does not.
    """

    def rank(record: TrialRecord) -> tuple[bool, bool, bool, float]:
        how = record.conditions
        return (
            how.cost != "latency",
            how.is_emulated,
            how.threads != cores,
            record.ratio or 1.0,
        )

    latest = sorted(records, key=lambda record: record.conditions.date, reverse=True)
    return sorted((r for r in latest if r.verdict == "accepted"), key=rank)


class RecordedPlans:
    """Answers the selection of kernels with the plans of tuning records.

    Args:
        target: what is compiled for.
        reading: what the stores hold; lines that could not be used among it are logged.
    """

    def __init__(self, target: TargetSpec, reading: Reading) -> None:
        self._target = target
        self._said: set[str] = set()
        self._by_key: dict[str, list[TrialRecord]] = {}
        problems = list(reading.problems)
        for record in reading.trials:
            reason = unfit(record, target)
            if reason is None:
                key = f"{record.family} {canonical(record.workload)}"
                self._by_key.setdefault(key, []).append(record)
            elif record.fingerprint == target.fingerprint():
                problems.append(Problem(f"{record.target}: {record.family}", reason))
        self.problems: Sequence[Problem] = problems
        """What was left out of all that might have served."""
        if problems:
            logger.warning("%s", Reading(problems=tuple(problems)).summary)

    def __call__(self, family: str, workload: TunableWorkload) -> Plan | None:
        """Return the best recorded plan, or None where there is none that can be used."""
        for record in best_first(
            self._by_key.get(task_key(family, workload), ()), self._target.cpu.cores
        ):
            plan = self._usable(record, workload)
            if plan is not None:
                return plan
        return None

    def _usable(self, record: TrialRecord, workload: TunableWorkload) -> Plan | None:
        fault: Any
        try:
            plan = plan_from(record.plan)
            fault = fault_for(workload, plan, self._target)
        except LineError as err:
            fault = err
        if fault is not None:
            logger.warning("a tuning record for %s was refused: %s", record.family, fault)
            return None
        how = record.conditions
        kind = "instructions counted on" if how.cost != "latency" else "times on"
        source = f"{kind} {'an emulated' if how.is_emulated else 'a'} board"
        if (how.is_emulated or how.cost != "latency") and source not in self._said:
            self._said.add(source)  # once, not for every kernel
            logger.warning(
                "plans come from %s: no time was measured; tune on a board to have better ones",
                source,
            )
        return plan
