"""What models take in memory and on disk."""

from __future__ import annotations

from tvm_mobilenet.report.data import (
    Axis,
    Bar,
    BarChart,
    Cell,
    Chart,
    Column,
    Point,
    Section,
    Series,
    Table,
)
from tvm_mobilenet.report.figures import plural, short
from tvm_mobilenet.report.forms import MeasurementForm, MemoryForm
from tvm_mobilenet.report.read import Records

__all__ = ["memory_section"]


def memory_section(records: Records) -> Section | None:
    """Show the memory of every measurement that knows it, over its run where that was recorded."""
    found = [(one, one.memory) for one in records.measurements if one.memory is not None]
    if not found:
        return None
    charts: list[BarChart | Chart] = [_bars(found)]
    charts += [_over_run(one, memory) for one, memory in found if len(memory.steps) > 1]
    return Section(
        name="memory",
        title="Memory",
        lead="Resident memory of the process that measured. What the model added (the solid part: "
        "its library on disk) is what it costs; the rest is TVM's runtime and, on a desk, Python.",
        charts=tuple(charts),
        tables=(_table(found),),
    )


def _name(one: MeasurementForm) -> str:
    return f"{one.model} for {one.target}, {plural(one.threads, 'thread')}"


def _bars(found: list[tuple[MeasurementForm, MemoryForm]]) -> BarChart:
    bars = []
    for one, memory in found:
        added = max(memory.peak_bytes - memory.before_bytes, 0) / 1e6
        bars.append(
            Bar(
                label=_name(one),
                value=added,
                floor=min(one.library_bytes / 1e6, added),
                text=f"{short(added)} MB",
                tone="ours",
            )
        )
    return BarChart(
        title="Megabytes that loading and running a model added",
        summary=f"{plural(len(bars), 'measurement')}; the table below has the figures.",
        unit="MB",
        bars=tuple(bars),
    )


def _over_run(one: MeasurementForm, memory: MemoryForm) -> Chart:
    steps = [("runtime alone", memory.before_bytes, memory.before_bytes)]
    steps += [(step.step, step.resident_bytes, step.peak_bytes) for step in memory.steps]

    def points(column: int, *, named: bool) -> tuple[Point, ...]:
        return tuple(
            Point(
                x=float(n),
                y=float(row[column]) / 1e6,
                title=f"{row[0]}: {float(row[column]) / 1e6:.1f} MB",
                label=row[0] if named else "",
            )
            for n, row in enumerate(steps)
        )

    return Chart(
        title=f"{_name(one)}: memory over the run",
        summary="; ".join(f"{name} {now / 1e6:.1f} MB" for name, now, _ in steps)
        + f"; at most {steps[-1][2] / 1e6:.1f} MB.",
        x=Axis(label="step of the run", whole=True),
        y=Axis(label="resident", unit="MB"),
        series=(
            Series(name="most so far", points=points(2, named=False), kind="steps", tone="faint"),
            Series(name="resident", points=points(1, named=False), kind="line", tone="ours"),
            Series(name="at the end of a step", points=points(1, named=True), tone="ours"),
        ),
    )


def _table(found: list[tuple[MeasurementForm, MemoryForm]]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            one.model,
            one.target,
            one.threads,
            one.library_bytes / 1e6,
            memory.before_bytes / 1e6,
            memory.peak_bytes / 1e6,
            (memory.peak_bytes - memory.before_bytes) / 1e6,
        )
        for one, memory in found
    ]
    return Table(
        name="memory",
        title="Memory and size",
        columns=(
            Column(name="model", title="model"),
            Column(name="target", title="target"),
            Column(name="threads", title="threads", style="fixed", decimals=0),
            *(
                Column(name=f"{name}_mb", title=title, unit="MB", style="fixed", decimals=2)
                for name, title in (
                    ("library", "library"),
                    ("before", "before"),
                    ("peak", "peak"),
                    ("added", "added"),
                )
            ),
        ),
        rows=tuple(rows),
    )
