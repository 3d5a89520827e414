"""The few figures that a reader looks for first."""

from __future__ import annotations

from collections.abc import Iterator

from tvm_mobilenet.report.data import Card
from tvm_mobilenet.report.figures import middle_half, plural, scientific, short
from tvm_mobilenet.report.read import Records
from tvm_mobilenet.report.sections.latency import engine_rows

__all__ = ["cards", "subjects"]


def subjects(records: Records) -> tuple[list[str], list[str]]:
    """Return the models and the targets or machines that the records speak of, each once."""
    models: list[str] = []
    targets: list[str] = []
    named = [(one.model, one.target) for one in records.measurements]
    named += [(one.model, one.target) for one in records.verifications]
    named += [(one.model, one.target) for one in records.runs]
    named += [(one.model, one.target) for one in records.counts]
    named += [(one.model, one.target) for one in records.tunings]
    models += [model for model, _ in named]
    targets += [target for _, target in named]
    for counted in records.counted_engines:
        models += [result.model for result in counted.results]
        targets += [result.target for result in counted.results]
    models += [result.model for one in records.comparisons for result in one.results]
    models += [one.model.name for one in records.manifests]
    targets += [one.target.name for one in records.manifests]
    targets += [one.target for one in records.explorations]
    targets += [one.target for one in records.trials]
    return list(dict.fromkeys(models)), list(dict.fromkeys(targets))


def cards(records: Records) -> tuple[Card, ...]:
    """Return the figures to head the report with."""
    return tuple(
        card
        for make in (_latency, _peers, _parity, _instructions, _memory, _choice, _tuning)
        for card in make(records)
    )


def _latency(records: Records) -> Iterator[Card]:
    real = [
        m
        for m in records.measurements
        if not (m.board and m.board.before and m.board.before.emulated)
    ]
    if not real:
        return
    best = min(real, key=lambda one: middle_half(one.timing.values_ms)[0])
    middle, low, high = middle_half(best.timing.values_ms)
    yield Card(
        title="Latency, median",
        value=short(middle),
        unit="ms",
        detail=f"{best.model}, {plural(best.threads, 'thread')}; middle half {short(low)} to "
        f"{short(high)}",
        tone="ours",
    )


def _peers(records: Records) -> Iterator[Card]:
    rows = [row for row in engine_rows(records) if row.is_ours and row.ratio is not None]
    if not rows:
        return
    worst = max(rows, key=lambda row: row.ratio or 0)
    best = min(rows, key=lambda row: row.ratio or 0)
    assert best.ratio is not None
    assert worst.ratio is not None
    value = short(best.ratio, 2)
    if len(rows) > 1:
        value = f"{value}–{short(worst.ratio, 2)}"
    peers = sorted({row.fastest_peer for row in rows if row.fastest_peer})
    yield Card(
        title="Of the fastest peer's time",
        value=value,
        unit="",
        detail=f"{plural(len(rows), 'comparison')}; fastest peer {' or '.join(peers)}",
        tone="ours" if worst.ratio < 1 else "plain",
    )


def _parity(records: Records) -> Iterator[Card]:
    found = records.verifications
    if not found:
        return
    agrees = all(one.within for one in found)
    errors = [c.relative_l2 for one in found for c in one.comparisons if c.relative_l2 is not None]
    references = sorted({c.reference for one in found for c in one.comparisons})
    yield Card(
        title="Parity",
        value="agrees" if agrees else "DISAGREES",
        unit="",
        detail=(f"relative L2 at most {scientific(max(errors))}, " if errors else "")
        + f"with {' and '.join(references) or 'no reference'}",
        tone="ours" if agrees else "alarm",
    )


def _instructions(records: Records) -> Iterator[Card]:
    if not records.counts:
        return
    best = min(records.counts, key=lambda one: one.instructions_per_inference)
    yield Card(
        title="Instructions",
        value=short(best.instructions_per_inference / 1e6, 4),
        unit="M",
        detail=f"{best.model} on {best.target}; "
        f"{best.instructions_per_inference / best.floor:.2f} times the floor",
    )


def _memory(records: Records) -> Iterator[Card]:
    found = [(one, one.memory) for one in records.measurements if one.memory is not None]
    if found:
        one, memory = min(found, key=lambda pair: pair[1].peak_bytes - pair[1].before_bytes)
        yield Card(
            title="Memory added",
            value=short((memory.peak_bytes - memory.before_bytes) / 1e6),
            unit="MB",
            detail=f"{one.model}, {plural(one.threads, 'thread')}; library "
            f"{short(one.library_bytes / 1e6)} MB",
        )
    elif records.manifests:
        smallest = min(records.manifests, key=lambda one: one.library.size_bytes)
        yield Card(
            title="Library",
            value=short(smallest.library.size_bytes / 1e6),
            unit="MB",
            detail=f"{smallest.model.name} for {smallest.target.name}",
        )


def _choice(records: Records) -> Iterator[Card]:
    for one in records.explorations:
        if one.best is not None:
            best = next(c for c in one.candidates if one.best.split(" ")[0] == c.model)
            yield Card(
                title=f"Best within {one.budget:g} {one.unit}",
                value=f"{best.accuracy:g}",
                unit="%",
                detail=f"{one.best} on {one.target}, {short(best.cost or 0)} {one.unit}",
                tone="ours",
            )


def _tuning(records: Records) -> Iterator[Card]:
    searches = [one for one in records.tunings if not one.is_dry_run and one.untuned > 0]
    if not searches:
        return
    best = min(searches, key=lambda one: one.best / one.untuned)
    yield Card(
        title="Tuned over computed",
        value=short(best.best / best.untuned),
        unit="",
        detail=f"{best.model}, {plural(best.trials, 'candidate')} in {best.seconds:.0f} s",
    )
