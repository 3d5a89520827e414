"""What searches found: the best candidate over the course of a search, and kernel by kernel."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tvm_mobilenet.report.data import (
    Axis,
    Bar,
    BarChart,
    Cell,
    Chart,
    Column,
    Guide,
    Point,
    Section,
    Series,
    Table,
)
from tvm_mobilenet.report.figures import geometric_mean, plural, short
from tvm_mobilenet.report.forms import TrialForm, TuningForm
from tvm_mobilenet.report.read import Records

__all__ = ["tuning_section"]

_WORST_SHOWN = 4.0
"""Candidates slower than so many times the computed plan are drawn at the edge."""


def tuning_section(records: Records) -> Section | None:
    """Show the curves of tuning logs and the outcome of searches."""
    searches = [one for one in records.tunings if not one.is_dry_run]
    curves = _curves(records.trials)
    if not searches and not curves:
        return None
    charts: list[BarChart | Chart] = list(curves)
    charts += [chart for one in searches if (chart := _outcome(one)) is not None]
    return Section(
        name="tuning",
        title="Tuning",
        lead="Cost of a kernel relative to its computed plan: 1 is the schedule that costs no "
        "search. A candidate replaces the best only once it has won two contests, turn by turn, so "
        "that a lucky measurement does not count.",
        charts=tuple(charts),
        tables=tuple(_table(one) for one in searches),
    )


def _curves(trials: Sequence[TrialForm]) -> list[Chart]:
    """Make one chart for each target, device and number of threads."""
    groups: dict[tuple[str, str, int, str], list[TrialForm]] = {}
    for trial in trials:
        conditions = trial.conditions
        key = (trial.target, conditions.device, conditions.threads, conditions.cost)
        groups.setdefault(key, []).append(trial)
    return [
        chart for key, found in groups.items() if (chart := _curve(*key[:3], found)) is not None
    ]


def _curve(target: str, device: str, threads: int, trials: Sequence[TrialForm]) -> Chart | None:
    kernels: dict[str, list[TrialForm]] = {}
    for trial in trials:
        name = json.dumps([trial.family, trial.dtype, trial.workload], sort_keys=True)
        kernels.setdefault(name, []).append(trial)
    tried: list[Point] = []
    lines: list[list[float]] = []
    for found in kernels.values():
        dots, best = _kernel(found)
        tried += dots
        if best:
            lines.append(best)
    if not lines:
        return None
    longest = max(map(len, lines))
    # A kernel whose search has ended keeps its best.
    overall = [
        geometric_mean([line[min(number, len(line) - 1)] for line in lines])
        for number in range(longest)
    ]
    steps = tuple(Point(x=n + 1.0, y=value, title="") for n, value in enumerate(overall))
    if longest == 1:
        steps = (*steps, Point(x=2.0, y=overall[0], title=""))
    return Chart(
        title=f"{target}, {device}, {plural(threads, 'thread')}: tuning curve",
        summary=f"{plural(len(trials), 'candidate')} for {plural(len(lines), 'kernel')}; the best "
        f"plans take {short(overall[-1])} of the computed plans' cost, in the geometric mean.",
        x=Axis(label="candidates for a kernel", whole=True),
        y=Axis(label="cost over the computed plan's", log=True),
        series=(
            Series(name="a candidate", points=tuple(tried), tone="faint"),
            Series(
                name="best so far, mean of all kernels", points=steps, kind="steps", tone="ours"
            ),
        ),
        guides=(Guide(label="computed plan", y=1.0, tone="plain"),),
    )


def _kernel(trials: Sequence[TrialForm]) -> tuple[list[Point], list[float]]:
    """Return the candidates of one kernel as points, and its best accepted ratio after each."""
    measured = [trial for trial in trials if trial.cost is not None]
    if not measured:
        return [], []
    first = measured[0].cost  # a search begins with the computed plan
    assert first is not None
    points, best, line = [], 1.0, []
    for number, trial in enumerate(measured, 1):
        assert trial.cost is not None
        relative = trial.cost / first
        if trial.verdict == "accepted" and trial.ratio is not None:
            best = min(best, trial.ratio)
        line.append(best)
        points.append(
            Point(
                x=float(number),
                y=min(relative, _WORST_SHOWN),
                title=f"{trial.family}, candidate {number}: {short(relative)}, {trial.verdict}",
            )
        )
    return points, line


def _outcome(one: TuningForm) -> BarChart | None:
    bars = []
    for task in one.tasks:
        if task.untuned is None:
            continue
        ratio = task.ratio if task.ratio is not None else 1.0
        tuned = task.calls * task.untuned * ratio
        gain = f", {1 - ratio:.0%} less" if ratio < 1 else ""
        bars.append(
            Bar(
                label=f"{task.name}{f' ×{task.calls}' if task.calls > 1 else ''}",
                value=tuned,
                floor=min(task.calls * task.floor, tuned) if task.floor else None,
                text=f"{short(tuned)} {one.unit}{gain}",
                tone="ours" if ratio < 1 else "plain",
            )
        )
    if not bars:
        return None
    return BarChart(
        title=f"{one.model} for {one.target}, {plural(one.threads, 'thread')}: cost by kernel with "
        "the best plans",
        summary=f"All kernels: {short(one.untuned)} {one.unit} with computed plans, "
        f"{short(one.best)} {one.unit} with the best; {plural(one.trials, 'candidate')} in "
        f"{one.seconds:.0f} s.",
        unit=one.unit,
        bars=tuple(bars),
        key=(("tuned", "ours"), ("computed plan stands", "plain")),
    )


def _table(one: TuningForm) -> Table:
    unit = "ms" if one.unit == "ms" else "M"
    rows: list[tuple[Cell, ...]] = [
        (
            task.name,
            task.calls,
            task.untuned,
            task.best,
            task.ratio,
            task.floor or None,
            task.trials,
            task.status,
        )
        for task in one.tasks
    ]
    return Table(
        name="tuning",
        title=f"Search for {one.model}, {one.target}",
        columns=(
            Column(name="kernel", title="kernel"),
            Column(name="calls", title="calls", style="fixed", decimals=0),
            Column(name="untuned", title="computed plan", unit=unit, style="fixed", decimals=4),
            Column(name="best", title="best plan", unit=unit, style="fixed", decimals=4),
            Column(name="ratio", title="ratio, turn by turn", style="fixed"),
            Column(name="floor", title="floor", unit=unit, style="fixed", decimals=4),
            Column(name="trials", title="tried", style="fixed", decimals=0),
            Column(name="status", title="outcome"),
        ),
        rows=tuple(rows),
    )
