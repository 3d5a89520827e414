"""Measures what could matter, the most promising first, and chooses.

A model is left out, unmeasured, where its prediction says that it cannot fit the budget, or where
measured ones beat it: one within the budget that is as accurate and surely faster, and one that is
as accurate and no larger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import (
    CompileError,
    ExportError,
    FrontendError,
    PassError,
    QuantizeError,
    SpecError,
    UsageError,
    error_context,
)
from tvm_mobilenet.exploration.candidates import PUBLISHED, Candidate, list_candidates
from tvm_mobilenet.exploration.choice import Budget, Measured
from tvm_mobilenet.exploration.journal import Journal, ProbeRecord
from tvm_mobilenet.exploration.prediction import Known, Prediction, predict
from tvm_mobilenet.exploration.result import Exploration, Outcome, exploration
from tvm_mobilenet.files import new_file
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.targets import TargetSpec, load_target

if TYPE_CHECKING:
    from tvm_mobilenet.exploration.probing import Prober
    from tvm_mobilenet.protocols import Device

__all__ = ["DEFAULT_FOLDER", "RESULT_FILE", "explore"]

DEFAULT_FOLDER = Path("out")
"""Where an exploration is written if nothing is said: a folder in it for each target."""
RESULT_FILE = "explore.json"

_FAILURES = (CompileError, ExportError, FrontendError, PassError, QuantizeError)
"""What is the model's own fault: it is noted, and the others go on."""


def explore(
    target: str | Path | TargetSpec = "host",
    *,
    budget_ms: float | None = None,
    budget_minstr: float | None = None,
    budget_mb: float | None = None,
    families: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    accuracy: Path | str | None = None,
    out: Path | str | None = None,
    threads: int | None = None,
    cpus: Sequence[int] = (),
    device: Device | None = None,
    use_logs: bool = True,
    logs: Path | str | None = None,
    prober: Prober | None = None,
    progress: Progress | None = None,
) -> Exploration:
    """Find the most accurate model that fits a budget on a target, and what else one could take.

    What was measured is appended to `explore.jsonl` in `out`, and the result so far is
    `explore.json`: called again after whatever ended it, it goes on where it was.

    Args:
        target: a target's name, a target file, or a loaded target.
        budget_ms: what an inference may take, in milliseconds.
        budget_minstr: what it may retire, in millions of instructions: for a target that is
            emulated here, in place of `budget_ms`.
        budget_mb: what the library may have, in millions of bytes.
        families: `v1`, `v2`, ... or whole names; None for all.
        dtypes: of the compiled models.
        accuracy: a CSV file of the user's own accuracies; None for the published ones.
        out: the folder to write; None for one named after the target under `out/`.
        threads: how many threads compute; None for the device's choice.
        cpus: the processors to compute on; empty for the device's choice.
        device: a board to measure on; None for this machine.
        use_logs: use recorded schedules where there are any.
        logs: the folder of tuning logs to use in place of the user's own.
        prober: what compiles and measures, in place of all of the above.
        progress: told of every model.

    Raises:
        UsageError: the request cannot be met: budget, target, families, file of accuracies.
        DeviceError: the board cannot be reached, or has gone; what was measured is kept.
        OutputError: the folder cannot be written.
    """
    progress = progress or NoProgress()
    spec = target if isinstance(target, TargetSpec) else load_target(target)
    budget = _budget(budget_ms, budget_minstr, budget_mb)
    candidates = list_candidates(families, dtypes, accuracy)
    folder = Path(out) if out is not None else DEFAULT_FOLDER / f"explore_{spec.name}"
    with ExitStack() as stack:
        stack.enter_context(error_context(stage="explore", target=spec.name))
        journal = Journal(folder)
        stack.enter_context(journal.claimed())
        if prober is None:
            prober = _prober(stack, spec, budget, threads, cpus, device, use_logs, logs, progress)
        if prober.conditions.unit != budget.unit:
            raise UsageError(f"budget {budget}: the device measures in {prober.conditions.unit}")
        state = _State(candidates, budget, _usable(journal, prober, candidates))
        _, damaged = journal.read()
        source = PUBLISHED if accuracy is None else f"{Path(accuracy).name}, the user's own"
        if damaged:
            state.notes.append(f"{damaged} lines of {journal.path.name} are damaged and left out")

        def save(*, complete: bool) -> Exploration:
            result = exploration(
                state.outcomes(), budget, prober.conditions, source, state.notes, complete=complete
            )
            _write(folder / RESULT_FILE, result)
            return result

        progress.start(f"exploring {spec.name}", len(candidates))
        progress.advance(len(state.found) + len(state.failed), "from earlier runs")
        while (candidate := state.next()) is not None:
            progress.advance(0, candidate.name)
            state.add(candidate, _probe(prober, candidate, journal))
            progress.advance(1, state.last)
            save(complete=False)
        result = save(complete=True)
        progress.done(f"{len(state.found)} of {len(candidates)} models measured")
        return result


def _budget(ms: float | None, minstr: float | None, mb: float | None) -> Budget:
    if (ms is None) == (minstr is None):
        raise UsageError(
            "budget: give one of --budget-ms, for a device that can be timed, and "
            "--budget-minstr, for an emulated one"
        )
    for name, value in (("budget-ms", ms), ("budget-minstr", minstr), ("budget-mb", mb)):
        if value is not None and not 0 < value < float("inf"):
            raise SpecError(f"{name} {value:g}: give more than 0")
    if ms is not None:
        return Budget(cost=ms, unit="ms", size_mb=mb)
    assert minstr is not None
    return Budget(cost=minstr, unit="Minstr", size_mb=mb)


def _prober(
    stack: ExitStack,
    spec: TargetSpec,
    budget: Budget,
    threads: int | None,
    cpus: Sequence[int],
    device: Device | None,
    use_logs: bool,
    logs: Path | str | None,
    progress: Progress,
) -> Prober:
    from tvm_mobilenet.exploration.probing import CountingProber, TimingProber

    if budget.unit == "Minstr":
        if device is not None or threads not in (None, 1) or cpus:
            raise UsageError(
                "budget-minstr: instructions are counted on an emulated board with one thread; "
                "name no other device, threads or processors"
            )
        from tvm_mobilenet.boards.emulator import ensure_board

        progress.start("preparing the emulated board")
        board = stack.enter_context(ensure_board(spec))
        progress.done(board.name)
        return CountingProber(spec, board, use_logs=use_logs, logs=logs)
    if device is None:
        _check_runs_here(spec)
    return TimingProber(
        spec, device=device, threads=threads, cpus=cpus, use_logs=use_logs, logs=logs
    )


def _check_runs_here(spec: TargetSpec) -> None:
    from tvm_mobilenet.elf import host_machine, machine_name

    machine = machine_name(spec.tvm.mtriple.partition("-")[0]) if spec.tvm.mtriple else None
    if not spec.is_host and machine not in (None, host_machine()):
        raise UsageError(
            f"target {spec.name}: its code does not run on this machine; name a board with "
            "--tracker or --device, or count with --emulated and --budget-minstr"
        )


def _usable(
    journal: Journal, prober: Prober, candidates: Iterable[Candidate]
) -> dict[tuple[str, str], ProbeRecord]:
    """Return what earlier runs have measured under the same conditions, the latest of each."""
    wanted = {(one.model, one.dtype) for one in candidates}
    records, _ = journal.read()
    return {
        (record.model, record.dtype): record
        for record in records
        if record.conditions == prober.conditions and (record.model, record.dtype) in wanted
    }


def _probe(prober: Prober, candidate: Candidate, journal: Journal) -> ProbeRecord:
    try:
        record = prober.probe(candidate)
    except _FAILURES as err:
        record = ProbeRecord(
            model=candidate.model,
            dtype=candidate.dtype,
            conditions=prober.conditions,
            failure=" ".join(str(err).split())[:500],
        )
    journal.append(record)
    return record


def _write(path: Path, result: Exploration) -> None:
    with new_file(path) as unfinished:
        unfinished.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")


@dataclass
class _State:
    """What is known so far, and so what to measure next."""

    candidates: Sequence[Candidate]
    budget: Budget
    earlier: dict[tuple[str, str], ProbeRecord]
    found: list[Measured] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    """What was predicted of a model right before it was measured."""
    errors: dict[str, list[float]] = field(default_factory=dict)
    """Relative errors of those, by their grounds."""
    notes: list[str] = field(default_factory=list)
    last: str = ""

    def __post_init__(self) -> None:
        for candidate in self.candidates:
            record = self.earlier.get((candidate.model, candidate.dtype))
            if record is not None:
                self.add(candidate, record)

    def add(self, candidate: Candidate, record: ProbeRecord) -> None:
        """Take in what was found of a candidate."""
        if record.cost is None:
            self.failed[candidate.name] = record.failure
            self.last = f"{candidate.name}: failed"
            return
        guess = self._predict(candidate)
        if guess is not None:
            self.predicted[candidate.name] = guess.cost
            error = abs(record.cost - guess.cost) / guess.cost
            self.errors.setdefault(guess.grounds, []).append(error)
        self.found.append(Measured(candidate, record))
        self.last = f"{candidate.name}: {record.cost:.4g} {self.budget.unit}"

    def next(self) -> Candidate | None:
        """Return the most accurate candidate that could fit and is not beaten; None at the end.

        The very first is one of middling size: a rate from the ends would serve the others badly.
        """
        left = [one for one in self._open() if not self._skip(one)]
        if not left:
            return None
        if not self.found:
            middle = median_low(one.macs for one in left)
            return next(one for one in left if one.macs == middle)
        likely = [one for one in left if self._cost(one) <= self.budget.cost]
        return max(likely or left, key=lambda one: (one.accuracy, -one.macs))

    def outcomes(self) -> list[Outcome]:
        """Return every candidate with what became of it."""
        measured = {one.candidate.name: one for one in self.found}
        outcomes = []
        for candidate in self.candidates:
            one = measured.get(candidate.name)
            guess = self._predict(candidate)
            predicted = self.predicted.get(candidate.name, guess.cost if guess else None)
            if one is not None:
                status, reason = ("measured", "") if one.fits(self.budget) else ("over budget", "")
            elif candidate.name in self.failed:
                status, reason = "failed", self.failed[candidate.name]
            else:
                status, reason = self._skip(candidate) or ("not reached", "")
            outcomes.append(Outcome(candidate, status, reason, predicted, one))
        return outcomes

    def _open(self) -> list[Candidate]:
        done = {one.candidate.name for one in self.found} | set(self.failed)
        return [one for one in self.candidates if one.name not in done]

    def _predict(self, candidate: Candidate) -> Prediction | None:
        known = [Known(one.candidate, one.cost) for one in self.found]
        return predict(candidate, known, self.errors)

    def _cost(self, candidate: Candidate) -> float:
        guess = self._predict(candidate)
        return guess.cost if guess else 0.0

    def _skip(self, candidate: Candidate) -> tuple[str, str] | None:
        """Return why a candidate need not be measured, or None."""
        size_mb = self.budget.size_mb
        if size_mb is not None and candidate.weight_bytes > size_mb * 1e6:
            return "too large", f"its weights alone are {candidate.weight_bytes / 1e6:.2f} MB"
        guess = self._predict(candidate)
        if guess is None:
            return None
        unit = self.budget.unit
        if guess.low > self.budget.cost:
            return "too slow", f"predicted {guess.low:.3g} to {guess.high:.3g} {unit}"
        better = [
            one
            for one in self.found
            if one.fits(self.budget) and one.candidate.accuracy >= candidate.accuracy
        ]
        faster = min(better, key=lambda one: one.cost, default=None)
        smaller = min(better, key=lambda one: one.candidate.weight_bytes, default=None)
        if faster is None or smaller is None or faster.cost > guess.low:
            return None
        if smaller.candidate.weight_bytes > candidate.weight_bytes:
            return None
        by = faster.candidate.name
        return "dominated", f"{by} is as accurate and takes {faster.cost:.3g} {unit}"
