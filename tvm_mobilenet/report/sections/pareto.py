"""The choice among models: accuracy against cost, and which of them nothing beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tvm_mobilenet.report.data import (
    Axis,
    Cell,
    Chart,
    Column,
    Guide,
    Point,
    Section,
    Series,
    Shape,
    Table,
    Tone,
)
from tvm_mobilenet.report.figures import plural, short
from tvm_mobilenet.report.forms import CandidateForm, ExplorationForm
from tvm_mobilenet.report.read import Records

__all__ = ["pareto_section"]

Need = Callable[[CandidateForm], float | None]
"""What is to be small; None where it was not measured."""


def pareto_section(records: Records) -> Section | None:
    """Show what explorations found."""
    found = records.explorations
    if not found:
        return None
    notes = [f"{one.target}: {note}" for one in found for note in one.notes]
    notes += [f"{one.target}: the exploration is not finished" for one in found if not one.complete]
    return Section(
        name="choice",
        title="Choice of a model",
        lead=" ".join(_answer(one) for one in found),
        charts=tuple(chart for one in found for chart in _charts(one)),
        tables=tuple(_table(one) for one in found),
        notes=tuple(notes),
    )


def _answer(one: ExplorationForm) -> str:
    budget = f"{one.budget:g} {one.unit}"
    if one.budget_mb is not None:
        budget += f" and {one.budget_mb:g} MB"
    where = f"{one.target}, {plural(one.threads, 'thread')}"
    if one.best is None:
        return f"On {where}, no model was found within {budget}."
    best = _by_name(one, one.best)
    second = f", then {one.runner_up}" if one.runner_up else ""
    return (
        f"On {where}, the most accurate model within {budget} is {one.best} "
        f"({best.accuracy:g} %, {short(best.cost or 0)} {one.unit}){second}. "
        f"Accuracy: {one.accuracy_source}."
    )


def _by_name(one: ExplorationForm, name: str) -> CandidateForm:
    return next(c for c in one.candidates if _title(c) == name or c.model == name)


def _title(candidate: CandidateForm) -> str:
    suffix = "" if candidate.dtype == "float32" else f" {candidate.dtype}"
    return f"{candidate.model}{suffix}"


def _charts(one: ExplorationForm) -> Iterator[Chart]:
    """Draw accuracy against each need that was measured."""
    budget_mb = one.budget_mb
    needs: tuple[tuple[str, str, float | None, tuple[str, ...], Need], ...] = (
        ("cost of one inference", one.unit, one.budget, one.front, lambda c: c.cost),
        ("size of the library", "MB", budget_mb, one.front_by_size, lambda c: _mb(c.size_bytes)),
        ("memory added", "MB", None, one.front_by_memory, lambda c: _mb(c.peak_bytes)),
    )
    for label, unit, budget, front, need in needs:
        chart = _chart(one, label, unit, budget, front, need)
        if chart is not None:
            yield chart


def _mb(size_bytes: int | None) -> float | None:
    return size_bytes / 1e6 if size_bytes else None


def _chart(
    one: ExplorationForm,
    label: str,
    unit: str,
    budget: float | None,
    names: tuple[str, ...],
    need: Need,
) -> Chart | None:
    measured = [(value, c) for c in one.candidates if (value := need(c)) is not None]
    if not measured or not names:
        return None

    def points(some: list[tuple[float, CandidateForm]], *, named: bool) -> tuple[Point, ...]:
        return tuple(
            Point(
                x=value,
                y=c.accuracy,
                title=f"{_title(c)}: {c.accuracy:g} %, {short(value)} {unit}",
                label=_title(c).removeprefix("mobilenet_") if named else "",
            )
            for value, c in some
        )

    front = sorted((pair for pair in measured if _title(pair[1]) in names), key=lambda p: p[0])
    beaten = [pair for pair in measured if _title(pair[1]) not in names]
    chosen = [pair for pair in measured if _title(pair[1]) in (one.best, one.runner_up)]
    looks: tuple[tuple[str, list[tuple[float, CandidateForm]], Shape, Tone, bool], ...] = (
        ("not on the front", beaten, "circle", "faint", False),
        ("on the front", front, "circle", "ours", True),
        ("best and runner-up", chosen, "ring", "second", False),
    )
    series = [
        Series(name=name, points=points(some, named=named), shape=shape, tone=tone)
        for name, some, shape, tone, named in looks
        if some
    ]
    if len(front) > 1:
        steps = points(front, named=False)
        series.insert(0, Series(name="", points=steps, kind="steps", tone="ours", in_key=False))
    within = "" if names == one.front else " within the budget"
    guides = (Guide(label=f"budget {budget:g} {unit}", x=budget, tone="alarm"),) if budget else ()
    return Chart(
        title=f"{one.target}, {plural(one.threads, 'thread')}: accuracy against {label}",
        summary=f"{plural(len(measured), 'model')} measured, {len(front)} on the Pareto front: "
        f"no other{within} is as accurate and needs no more.",
        x=Axis(label=label, unit=unit, log=True),
        y=Axis(label="top-1 accuracy", unit="%"),
        series=tuple(series),
        guides=guides,
    )


def _table(one: ExplorationForm) -> Table:
    rows: list[tuple[Cell, ...]] = []
    ours = set()
    order = sorted(one.candidates, key=lambda c: -c.accuracy)
    for candidate in order:
        if _title(candidate) in (one.best, one.runner_up):
            ours.add(len(rows))
        word = candidate.status
        if _title(candidate) == one.best:
            word = "best"
        elif _title(candidate) == one.runner_up:
            word = "runner-up"
        rows.append(
            (
                candidate.model,
                candidate.dtype,
                candidate.accuracy,
                f"{word}: {candidate.reason}" if candidate.reason else word,
                candidate.macs / 1e6,
                candidate.predicted,
                candidate.cost,
                candidate.size_bytes / 1e6 if candidate.size_bytes else None,
                candidate.peak_bytes / 1e6 if candidate.peak_bytes else None,
                ", ".join(
                    name
                    for name, front in (
                        ("cost", one.front),
                        ("size", one.front_by_size),
                        ("memory", one.front_by_memory),
                    )
                    if _title(candidate) in front
                ),
            )
        )
    return Table(
        name="candidates",
        title=f"Models considered for {one.target}",
        columns=(
            Column(name="model", title="model"),
            Column(name="dtype", title="dtype"),
            Column(name="accuracy", title="top-1", unit="%", style="fixed", decimals=1),
            Column(name="outcome", title="outcome"),
            Column(name="macs_m", title="multiply-adds", unit="M", style="fixed", decimals=1),
            Column(name="predicted", title="predicted", unit=one.unit, style="fixed", decimals=2),
            Column(name="cost", title="measured", unit=one.unit, style="fixed", decimals=2),
            Column(name="library_mb", title="library", unit="MB", style="fixed", decimals=2),
            Column(name="memory_mb", title="memory added", unit="MB", style="fixed", decimals=1),
            Column(name="front", title="on the front of"),
        ),
        rows=tuple(rows),
        ours=frozenset(ours),
        is_open=True,
    )
