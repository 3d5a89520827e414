"""What changed since older records: only what lies beyond the noise of both counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.report.data import Bar, BarChart, Cell, Column, Section, Table, Tone
from tvm_mobilenet.report.figures import middle_half, plural, short
from tvm_mobilenet.report.read import Records
from tvm_mobilenet.report.sections.latency import OURS, engine_rows

__all__ = ["Change", "compare_records", "comparison_section"]


_METRICS = (
    "latency",
    "latency beside peers",
    "instructions",
    "instructions beside peers",
    "memory added",
    "library",
    "outputs that disagree",
)
"""What is compared, in the order of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """One figure of a record that another record can have too. Less is better."""

    subject: tuple[str, ...]
    """What has to be the same: metric, model, target, engine."""
    device: str
    """On what it was taken; empty where that makes no difference."""
    threads: int | None
    unit: str
    value: float
    low: float | None
    """Ends of its interval; None where a record holds one value and no statistics of it."""
    high: float | None
    is_exact: bool = False

    @property
    def name(self) -> str:
        """In words."""
        words = ", ".join(filter(None, self.subject[1:]))
        return f"{words}, {plural(self.threads, 'thread')}" if self.threads else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure then and now."""

    metric: str
    name: str
    unit: str
    old: float
    old_interval: tuple[float, float] | None
    new: float
    new_interval: tuple[float, float] | None
    verdict: str
    """`regressed`, `improved`, `within noise`, `unchanged`, or `one value each`."""
    is_ours: bool = True

    @property
    def ratio(self) -> float | None:
        """New over old."""
        return self.new / self.old if self.old else None


def compare_records(new: Records, old: Records) -> list[Change]:
    """Set every figure that both hold side by side.

    A timing has changed where the middle halves of both series do not touch. Counts and sizes are
    exact: any difference is one. Memory is one value without statistics, and gets no verdict.

    Raises:
        UsageError: both timed the same model, on unlike devices or with unlike threads; or they
            have nothing in common.
    """
    before = {_key(one): one for one in _figures(old)}
    after = {_key(one): one for one in _figures(new)}
    changes = [_change(before[key], one) for key, one in after.items() if key in before]
    changes.sort(key=lambda change: _METRICS.index(change.metric))
    for key, one in after.items():
        if key not in before:
            _refuse_unlike(one, [b for b in before.values() if b.subject == one.subject], changes)
    if not changes:
        raise UsageError(
            "compare: the old records and the new have no figure in common; give records of the "
            "same models, targets and devices"
        )
    return changes


def _key(one: _Figure) -> tuple[object, ...]:
    return (one.subject, one.device, one.threads)


def _refuse_unlike(one: _Figure, others: list[_Figure], changes: list[Change]) -> None:
    """Raise where the same thing was taken, but elsewhere or otherwise."""
    on_others = [other for other in others if other.device != one.device]
    same_device = [other for other in others if other.device == one.device]
    if on_others and not same_device:
        raise UsageError(
            f"compare: {' '.join(one.subject)} was measured on {on_others[0].device!r} then, and "
            f"on {one.device!r} now; unlike devices cannot be compared, give records of one"
        )
    if same_device and not any(change.metric == one.subject[0] for change in changes):
        raise UsageError(
            f"compare: {' '.join(one.subject)} was measured with "
            f"{plural(same_device[0].threads or 0, 'thread')} then, and with "
            f"{plural(one.threads or 0, 'thread')} now; unlike numbers of threads cannot be "
            "compared, measure with the same --threads"
        )


def _figures(records: Records) -> Iterator[_Figure]:
    for one in records.measurements:
        middle, low, high = middle_half(one.timing.values_ms)
        device = f"{one.board.name}, {one.host.cpu}" if one.board else one.host.cpu
        latency = _Figure(
            subject=("latency", one.model, one.target),
            device=device,
            threads=one.threads,
            unit="ms",
            value=middle,
            low=low,
            high=high,
        )
        yield latency
        if one.memory is not None:
            yield replace(
                latency,
                subject=("memory added", one.model, one.target),
                unit="MB",
                value=(one.memory.peak_bytes - one.memory.before_bytes) / 1e6,
                low=None,
                high=None,
            )
        yield _exact("library", one.model, one.target, "MB", one.library_bytes / 1e6)
    for row in engine_rows(records):
        if row.median_ms is not None:
            yield _Figure(
                subject=("latency beside peers", row.model, row.engine),
                device=row.where,
                threads=row.threads,
                unit="ms",
                value=row.median_ms,
                low=row.low_ms,
                high=row.high_ms,
            )
    for count in records.counts:
        millions = count.instructions_per_inference / 1e6
        yield _exact("instructions", count.model, count.target, "M", millions)
    for counted in records.counted_engines:
        for result in counted.results:
            for engine in result.engines:
                if not engine.absence:
                    yield _exact(
                        "instructions beside peers",
                        f"{result.model} {result.target}",
                        engine.engine,
                        "M",
                        engine.instructions / 1e6,
                    )
    for manifest in records.manifests:
        size = manifest.library.size_bytes / 1e6
        yield _exact("library", manifest.model.name, manifest.target.name, "MB", size)
    for found in records.verifications:
        disagreeing = float(sum(not output.within for output in found.comparisons))
        yield _exact("outputs that disagree", found.model, found.target, "", disagreeing)


def _exact(metric: str, model: str, target: str, unit: str, value: float) -> _Figure:
    return _Figure(
        subject=(metric, model, target),
        device="",
        threads=None,
        unit=unit,
        value=value,
        low=value,
        high=value,
        is_exact=True,
    )


def _change(old: _Figure, new: _Figure) -> Change:
    engine = new.subject[2]
    return Change(
        metric=new.subject[0],
        name=new.name,
        unit=new.unit,
        old=old.value,
        old_interval=_interval(old),
        new=new.value,
        new_interval=_interval(new),
        verdict=_verdict(old, new),
        is_ours="peers" not in new.subject[0] or engine in ("ours", OURS),
    )


def _interval(one: _Figure) -> tuple[float, float] | None:
    if one.is_exact or one.low is None or one.high is None:
        return None
    return one.low, one.high


def _verdict(old: _Figure, new: _Figure) -> str:
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return "one value each"
    if new.low > old.high:
        return "regressed"
    if new.high < old.low:
        return "improved"
    return "unchanged" if new.is_exact else "within noise"


def comparison_section(changes: list[Change]) -> Section:
    """Make the section that heads a report with `--compare`."""
    regressed = [c for c in changes if c.verdict == "regressed" and c.is_ours]
    improved = [c for c in changes if c.verdict == "improved" and c.is_ours]
    others = [c for c in changes if c.verdict in ("regressed", "improved") and not c.is_ours]
    noted = [f"{c.name}, a peer, {c.verdict} too: what changed may be the machine" for c in others]
    return Section(
        name="changes",
        title="Changes",
        lead=f"Of {plural(len(changes), 'figure')} that both have, {len(regressed)} regressed and "
        f"{len(improved)} improved. A timing counts as changed where the middle halves of both "
        "series do not touch; counts and sizes are exact.",
        charts=(_chart(changes),),
        tables=(_table(changes),),
        notes=tuple(noted),
    )


def _chart(changes: list[Change]) -> BarChart:
    tones: dict[str, Tone] = {"regressed": "alarm", "improved": "ours"}
    bars = []
    last = ""
    for change in changes:
        if change.ratio is None:
            continue
        bars.append(
            Bar(
                label=change.name,
                value=change.ratio,
                text=f"{100 * (change.ratio - 1):+.1f} %, {change.verdict}",
                tone=tones.get(change.verdict, "plain"),
                heading=change.metric if change.metric != last else "",
            )
        )
        last = change.metric
    return BarChart(
        title="Now over then, less is better",
        summary=f"{plural(len(bars), 'figure')}; the table below has them with their intervals.",
        unit="",
        bars=tuple(bars) or (Bar(label="no ratio", value=0.0, text="every old figure is 0"),),
    )


def _table(changes: list[Change]) -> Table:
    def interval(ends: tuple[float, float] | None) -> str:
        return f"{short(ends[0])} to {short(ends[1])}" if ends else ""

    rows: list[tuple[Cell, ...]] = [
        (
            change.metric,
            change.name,
            change.unit,
            change.old,
            interval(change.old_interval),
            change.new,
            interval(change.new_interval),
            change.ratio,
            change.verdict,
        )
        for change in changes
    ]
    return Table(
        name="changes",
        title="Then and now",
        columns=(
            Column(name="metric", title="figure"),
            Column(name="name", title="of"),
            Column(name="unit", title="unit"),
            Column(name="old", title="then", style="fixed"),
            Column(name="old_interval", title="middle half"),
            Column(name="new", title="now", style="fixed"),
            Column(name="new_interval", title="middle half"),
            Column(name="ratio", title="now / then", style="fixed"),
            Column(name="verdict", title="verdict"),
        ),
        rows=tuple(rows),
        alarms=frozenset(n for n, c in enumerate(changes) if c.verdict == "regressed"),
        ours=frozenset(n for n, c in enumerate(changes) if c.verdict == "improved"),
        is_open=True,
    )
