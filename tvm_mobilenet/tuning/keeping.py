"""Putting tuning logs in order: list, look into, merge, prune, hand on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.files import new_file, output_error
from tvm_mobilenet.tuning.recorded import best_first, read_stores, unfit
from tvm_mobilenet.tuning.records import (
    LineError,
    TrialRecord,
    canonical,
    encode_line,
    plan_from,
    workload_from,
)
from tvm_mobilenet.tuning.store import (
    Problem,
    Reading,
    Store,
    read_log,
    shipped_store,
    user_store,
)
from tvm_mobilenet.tuning.target_space import fault_for
from tvm_mobilenet.tuning.tasks import Task

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = [
    "BestRecord",
    "LogSummary",
    "best_records",
    "describe_logs",
    "export_log",
    "import_log",
    "left_out",
    "merge_store",
    "prune_log",
]


@dataclass(frozen=True)
class LogSummary:
    """One log in numbers."""

    target: str
    store: str
    """`yours` or `shipped`."""
    records: int
    accepted: int
    kernels: int
    """Different kernels that have an accepted record."""
    rejected: int
    left_out: int
    """Lines that are torn, altered or of another format."""
    path: str


@dataclass(frozen=True)
class BestRecord:
    """What `compile` would take for one kernel."""

    name: str
    ratio: float
    unit: str
    plan: str
    """The plan's fields in short."""
    record: TrialRecord


def describe_logs(logs: Path | str | None = None) -> list[LogSummary]:
    """Count what each log holds, the user's first."""
    return [
        _describe(name, store, target)
        for name, store in (("yours", user_store(logs)), ("shipped", shipped_store()))
        for target in store.targets()
    ]


def _describe(name: str, store: Store, target: str) -> LogSummary:
    reading = store.read(target)
    accepted = [r for r in reading.trials if r.verdict == "accepted"]
    return LogSummary(
        target=target,
        store=name,
        records=len(reading.trials),
        accepted=len(accepted),
        kernels=len({_key(record) for record in accepted}),
        rejected=sum(record.verdict == "rejected" for record in reading.trials),
        left_out=len(reading.problems),
        path=str(store.path(target)),
    )


def best_records(target: TargetSpec, logs: Path | str | None = None) -> list[BestRecord]:
    """Return what `compile` would take for `target`, one record a kernel."""
    fit = [r for r in read_stores(target, logs).trials if _fault(r, target) is None]
    result = []
    for records in _by_key(fit).values():
        best = best_first(records, target.cpu.cores)
        if best:
            record = best[0]
            name = Task(record.family, workload_from(record.workload), 1).name
            unit = "ms" if record.conditions.cost == "latency" else "Minstr"
            result.append(BestRecord(name, record.ratio or 1.0, unit, _spell(record.plan), record))
    return result


def left_out(target: TargetSpec, logs: Path | str | None = None) -> list[Problem]:
    """Return every line and record that `compile` would not take for `target`, with the reason."""
    reading = read_stores(target, logs)
    problems = list(reading.problems)
    for record in reading.trials:
        reason = _fault(record, target) if record.verdict == "accepted" else None
        if reason is not None:
            problems.append(Problem(f"{record.target}, {record.family}", reason))
    return problems


def _fault(record: TrialRecord, target: TargetSpec) -> str | None:
    reason = unfit(record, target)
    if reason is not None:
        return reason
    try:
        return fault_for(workload_from(record.workload), plan_from(record.plan), target)
    except LineError as err:
        return str(err)


def merge_store(source: Path, logs: Path | str | None = None) -> Iterator[tuple[str, int, Reading]]:
    """Add another store's records to the user's, target by target.

    Raises:
        InputFileError: there is no log in `source`.
        OutputError: the user's store cannot be written.
    """
    other = Store(source)
    if not other.targets():
        raise InputFileError(
            f"store {source}: no log was found in it; give the folder that holds the targets' "
            "folders"
        )
    for target in other.targets():
        reading = other.read(target)
        yield target, user_store(logs).merge(target, reading), reading


def prune_log(
    target: str, logs: Path | str | None = None, *, keep_trials: bool = False
) -> tuple[Reading, int]:
    """Rewrite a log of the user's with what is worth keeping; returns what it was, and how many.

    Raises:
        UsageError: there is no such log.
        OutputError: it cannot be rewritten.
    """
    kept: list[Any] = []

    def keep(reading: Reading) -> list[Any]:
        kept.extend(
            (*reading.trials, *reading.sessions) if keep_trials else _best_of(reading.trials)
        )
        return kept

    return user_store(logs).rewrite(target, keep), len(kept)


def export_log(target: str, output: Path, logs: Path | str | None = None) -> int:
    """Write the best records of one of the user's logs into a file; returns how many.

    Raises:
        OutputError: the file cannot be written.
    """
    store = user_store(logs)
    records = _best_of(store.read(target).trials)
    if not records:
        raise InputFileError(
            f"target {target}: {store.path(target)} has no accepted record; tune first"
        )
    try:
        with new_file(output) as unfinished:
            unfinished.write_bytes(b"".join(encode_line(record) for record in records))
    except OSError as err:
        raise output_error(output, err) from err
    return len(records)


def import_log(file: Path, logs: Path | str | None = None) -> tuple[dict[str, int], Reading]:
    """Add the records of a file to the user's store; returns how many for each target.

    Raises:
        InputFileError: the file is not there.
        OutputError: the store cannot be written.
    """
    if not file.is_file():
        raise InputFileError(
            f"log {file}: there is no such file; give one that `logs export` wrote"
        )
    reading = read_log(file)
    counts = {}
    for target in sorted({record.target for record in reading.trials}):
        mine = Reading(tuple(r for r in reading.trials if r.target == target))
        counts[target] = user_store(logs).merge(target, mine)
    return counts, reading


def _best_of(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the best accepted record of each kernel, target, TVM version and kind of measuring."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in trials:
        how = record.conditions
        group = [
            record.fingerprint,
            _key(record),
            how.tvm,
            record.writer,
            how.threads,
            how.cost,
            how.is_emulated,
        ]
        groups.setdefault(canonical(group), []).append(record)
    best = [best_first(records, 0) for records in groups.values()]
    return [records[0] for records in best if records]


def _by_key(records: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    found: dict[str, list[TrialRecord]] = {}
    for record in records:
        found.setdefault(_key(record), []).append(record)
    return found


def _key(record: TrialRecord) -> str:
    return f"{record.family} {canonical(record.workload)}"


def _spell(plan: dict[str, Any]) -> str:
    """Spell a plan in short: `separable row_block=7 depthwise(column_tile=2 ...)`."""
    parts = [
        f"{name}({_spell(value)})" if isinstance(value, dict) else f"{name}={value}"
        for name, value in plan.items()
        if name not in ("kind", "lanes", "by_lane")
    ]
    return " ".join(filter(None, [plan.get("kind", ""), *parts]))
