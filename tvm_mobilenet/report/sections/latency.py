"""How long an inference takes, beside other engines where they were timed too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
from tvm_mobilenet.report.figures import middle_half, plural, short
from tvm_mobilenet.report.forms import (
    ComparisonForm,
    EngineTimesForm,
    MeasurementForm,
    RunForm,
    TimingRowForm,
)
from tvm_mobilenet.report.read import Records

__all__ = ["OURS", "EngineRow", "engine_rows", "series_section", "versus_section"]

OURS = "tvm-mobilenet"
_FAR = 4.0
"""An inference that took so many medians would press all others to the axis: logarithmic then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One engine on one model at one number of threads, in any record."""

    model: str
    threads: int
    engine: str
    version: str
    where: str
    """The machine, as far as the record says."""
    median_ms: float | None
    low_ms: float | None
    high_ms: float | None
    min_ms: float | None
    ratio: float | None
    """To the fastest peer, taken round by round."""
    fastest_peer: str | None
    absence: str

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's library."""
        return self.engine == OURS


def engine_rows(records: Records) -> list[EngineRow]:
    """Return every engine that was timed beside others, in the order of the records."""
    rows: list[EngineRow] = []
    for comparison in records.comparisons:
        rows.extend(_compared(comparison))
    for run in records.runs:
        for timing in run.timing:
            if timing.onnxruntime is not None:
                rows.extend(_of_run(run, timing, timing.onnxruntime))
    return rows


def _compared(comparison: ComparisonForm) -> Iterator[EngineRow]:
    where = ", ".join(filter(None, (comparison.cpu, comparison.dtype)))
    for result in comparison.results:
        for engine in result.engines:
            low = high = None
            if engine.round_medians_ms:
                _, low, high = middle_half(engine.round_medians_ms)
            yield EngineRow(
                model=result.model,
                threads=result.threads,
                engine=OURS if engine.engine in ("ours", OURS) else engine.engine,
                version=engine.version,
                where=where,
                median_ms=engine.median_ms,
                low_ms=low,
                high_ms=high,
                min_ms=engine.min_ms,
                ratio=engine.ratio,
                fastest_peer=result.fastest_peer,
                absence=engine.absence or "",
            )


def _of_run(run: RunForm, timing: TimingRowForm, peer: EngineTimesForm) -> Iterator[EngineRow]:
    for engine in (peer, timing.compiled):
        _, low, high = middle_half(engine.round_medians_ms)
        is_ours = engine is timing.compiled
        yield EngineRow(
            model=run.model,
            threads=timing.threads,
            engine=OURS if is_ours else engine.engine,
            version=engine.version,
            where=f"target {run.target}",
            median_ms=engine.median_ms,
            low_ms=low,
            high_ms=high,
            min_ms=engine.min_ms,
            ratio=timing.ratio if is_ours else 1.0,
            fastest_peer=engine.engine if not is_ours else peer.engine,
            absence="",
        )


def versus_section(records: Records) -> Section | None:
    """Set this project's latency beside other engines'."""
    rows = engine_rows(records)
    timed = [row for row in rows if row.median_ms is not None]
    if not timed:
        return None
    ratios = [row.ratio for row in timed if row.is_ours and row.ratio is not None]
    lead = (
        "All engines computed the same model from the same input, turn by turn in one run. "
        "Bars are medians, whiskers the middle half of the rounds."
    )
    if ratios:
        faster = sum(ratio < 1 for ratio in ratios)
        ends = dict.fromkeys((short(min(ratios), 2), short(max(ratios), 2)))
        spread = " to ".join(ends)
        lead += (
            f" Round by round this library took {spread} of the fastest peer's time: less than it "
            f"in {faster} of {plural(len(ratios), 'comparison')}."
        )
    notes = [note for one in records.comparisons for r in one.results for note in r.warnings]
    return Section(
        name="peers",
        title="Latency against peers",
        lead=lead,
        charts=_charts(timed),
        tables=(_table(rows),),
        notes=tuple(dict.fromkeys(notes)),
    )


def _charts(rows: list[EngineRow]) -> tuple[BarChart, ...]:
    """Make a chart for each model on each machine: models differ too much for one scale."""
    groups: dict[tuple[str, str], list[EngineRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.where), []).append(row)
    return tuple(_chart(*key, found) for key, found in groups.items())


def _chart(model: str, where: str, rows: list[EngineRow]) -> BarChart:
    bars: list[Bar] = []
    said = []
    last = None
    for row in rows:
        heading = plural(row.threads, "thread") if row.threads != last else ""
        last = row.threads
        assert row.median_ms is not None
        text = f"{short(row.median_ms)} ms"
        if row.is_ours and row.ratio is not None:
            ratio = short(row.ratio, 2)
            text += f", ×{ratio}"
            peer = f"{ratio} of the time of {row.fastest_peer}, the fastest peer"
            said.append(f"{plural(row.threads, 'thread')}: {peer}")
        bars.append(
            Bar(
                label=row.engine,
                value=row.median_ms,
                low=row.low_ms,
                high=row.high_ms,
                text=text,
                tone="ours" if row.is_ours else "plain",
                heading=heading,
            )
        )
    return BarChart(
        title=f"{model}: milliseconds for one inference, less is better",
        summary=f"{where}. {'; '.join(said)}.",
        unit="ms",
        bars=tuple(bars),
    )


def _table(rows: list[EngineRow]) -> Table:
    cells: list[tuple[Cell, ...]] = [
        (
            row.model,
            row.threads,
            row.engine,
            row.version,
            row.median_ms,
            row.low_ms,
            row.high_ms,
            row.min_ms,
            row.ratio,
            row.absence or row.where,
        )
        for row in rows
    ]
    return Table(
        name="engines",
        title="Engines side by side",
        columns=(
            Column(name="model", title="model"),
            Column(name="threads", title="threads", style="fixed", decimals=0),
            Column(name="engine", title="engine"),
            Column(name="version", title="version"),
            Column(name="median_ms", title="median", unit="ms", style="fixed"),
            Column(name="low_ms", title="lower quartile", unit="ms", style="fixed"),
            Column(name="high_ms", title="upper quartile", unit="ms", style="fixed"),
            Column(name="min_ms", title="min", unit="ms", style="fixed"),
            Column(name="ratio", title="to fastest peer", style="fixed", decimals=2),
            Column(name="note", title="where, or why not"),
        ),
        rows=tuple(cells),
        ours=frozenset(index for index, row in enumerate(rows) if row.is_ours),
    )


def series_section(records: Records) -> Section | None:
    """Show every timed series: its statistics, and each inference in its turn."""
    found = records.measurements
    if not found:
        return None
    charts = [_over_time(one) for one in found if len(one.timing.values_ms) > 1]
    return Section(
        name="latency",
        title="Latency",
        lead="Every inference of the series, warm-ups apart. The median is the figure to quote; a "
        "curve that rises or has steps is a machine that throttles or is shared.",
        charts=tuple(charts),
        tables=(_series_table(found),),
        notes=tuple(
            f"{one.model}, {plural(one.threads, 'thread')}: {warning}"
            for one in found
            for warning in one.warnings
        ),
    )


def _over_time(one: MeasurementForm) -> Chart:
    warmup, values = one.timing.warmup_ms, one.timing.values_ms
    middle, low, high = middle_half(values)
    wide = max(*warmup, *values) > _FAR * middle

    def points(some: Iterable[float], first: int) -> tuple[Point, ...]:
        return tuple(
            Point(x=float(number), y=value, title=f"inference {number}: {short(value)} ms")
            for number, value in enumerate(some, first)
        )

    series = [
        Series(name="warm-up", points=points(warmup, 1), tone="faint", shape="ring"),
        Series(name="counted", points=points(values, 1 + len(warmup)), tone="ours"),
        Series(
            name=f"median, {short(middle)} ms",
            points=(
                Point(x=1.0 + len(warmup), y=middle, title=""),
                Point(x=float(len(warmup) + len(values)), y=middle, title=""),
            ),
            kind="line",
            tone="second",
        ),
    ]
    return Chart(
        title=f"{one.model} for {one.target}, {plural(one.threads, 'thread')}: inference by "
        "inference",
        summary=f"Median {short(middle)} ms, middle half {short(low)} to {short(high)} ms, of "
        f"{len(values)} inferences.",
        x=Axis(label="inference", whole=True),
        y=Axis(label="latency", unit="ms", log=wide, from_zero=not wide),
        series=tuple(one for one in series if one.points),
    )


def _series_table(found: list[MeasurementForm]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        values = sorted(one.timing.values_ms)
        middle, low, high = middle_half(values)
        rows.append(
            (
                one.model,
                one.target,
                one.threads,
                middle,
                low,
                high,
                values[0],
                values[-1],
                one.load_ms,
                one.first_run_ms,
                len(values),
                one.board.name if one.board else one.host.cpu,
            )
        )
    return Table(
        name="series",
        title="Timed series",
        columns=(
            Column(name="model", title="model"),
            Column(name="target", title="target"),
            Column(name="threads", title="threads", style="fixed", decimals=0),
            Column(name="median_ms", title="median", unit="ms", style="fixed"),
            Column(name="low_ms", title="lower quartile", unit="ms", style="fixed"),
            Column(name="high_ms", title="upper quartile", unit="ms", style="fixed"),
            Column(name="min_ms", title="min", unit="ms", style="fixed"),
            Column(name="max_ms", title="max", unit="ms", style="fixed"),
            Column(name="load_ms", title="load", unit="ms", style="fixed", decimals=1),
            Column(name="first_run_ms", title="first run", unit="ms", style="fixed", decimals=1),
            Column(name="inferences", title="inferences", style="fixed", decimals=0),
            Column(name="device", title="on"),
        ),
        rows=tuple(rows),
    )
