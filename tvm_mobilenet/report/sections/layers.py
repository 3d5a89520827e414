"""Where the time, or the instructions, of an inference go, layer by layer, against the floor."""

from __future__ import annotations

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
    Shape,
    Table,
    Tone,
)
from tvm_mobilenet.report.figures import plural, short
from tvm_mobilenet.report.forms import LayerTimeForm, MeasurementForm, ProfileForm
from tvm_mobilenet.report.read import Records

__all__ = ["layers_section"]

_LOOKS: tuple[tuple[Shape, Tone], ...] = (
    ("circle", "ours"),
    ("square", "second"),
    ("triangle", "third"),
    ("diamond", "plain"),
    ("cross", "plain"),
    ("ring", "plain"),
)
"""Shape and colour of a kernel family: told apart by either."""


def layers_section(records: Records) -> Section | None:
    """Show per-layer times and a roofline for each profile."""
    profiled = [(one, one.profile) for one in records.measurements if one.profile is not None]
    if not profiled:
        return None
    charts: list[BarChart | Chart] = []
    tables, notes = [], []
    for one, profile in profiled:
        charts += [_bars(one, profile), _roofline(one, profile)]
        tables.append(_table(one, profile))
        if profile.peak_note:
            notes.append(f"{_name(one)}: {profile.peak_note}")
    return Section(
        name="layers",
        title="Time by layer, against the floor",
        lead="The solid part of a bar is the floor: the layer's multiply-adds at the machine's "
        "peak. What is beyond it is what a better kernel could gain at most. In the roofline a "
        "layer under the roof's flat part is bound by computing, one far below it by memory or by "
        "its kernel.",
        charts=tuple(charts),
        tables=tuple(tables),
        notes=tuple(notes),
    )


def _name(one: MeasurementForm) -> str:
    return f"{one.model} for {one.target}, {plural(one.threads, 'thread')}"


def _floor_ms(layer: LayerTimeForm, profile: ProfileForm) -> float | None:
    if layer.gflops is None or profile.peak is None:
        return None
    return layer.median_ms * min(layer.gflops / profile.peak.gflops, 1.0)


def _bars(one: MeasurementForm, profile: ProfileForm) -> BarChart:
    bars = tuple(
        Bar(
            label=f"{layer.index}  {layer.kernel}",
            value=1e3 * layer.median_ms,
            text=f"{short(1e3 * layer.median_ms)} µs",
            floor=None if (floor := _floor_ms(layer, profile)) is None else 1e3 * floor,
            tone="ours",
        )
        for layer in profile.layers
    )
    known = [floor for layer in profile.layers if (floor := _floor_ms(layer, profile)) is not None]
    share = f"; the floor of all is {short(sum(known))} ms" if known else ""
    slowest = max(profile.layers, key=lambda layer: layer.median_ms)
    return BarChart(
        title=f"{_name(one)}: microseconds by layer",
        summary=f"{len(bars)} layers take {short(profile.sum_ms)} ms{share}. The longest is layer "
        f"{slowest.index}, {slowest.kernel}, with {slowest.median_ms / profile.sum_ms:.0%}.",
        unit="µs",
        bars=bars,
    )


def _roofline(one: MeasurementForm, profile: ProfileForm) -> Chart:
    families: dict[str, list[Point]] = {}
    for layer in profile.layers:
        if layer.gflops is None:
            continue
        intensity = layer.gflops / layer.gbytes_per_s
        families.setdefault(layer.family, []).append(
            Point(
                x=intensity,
                y=layer.gflops,
                title=f"{layer.index} {layer.kernel}: {short(layer.gflops)} GFLOP/s at "
                f"{short(intensity)} FLOP/byte",
            )
        )
    series = tuple(
        Series(
            name=name,
            points=tuple(points),
            shape=_LOOKS[n % len(_LOOKS)][0],
            tone=_LOOKS[n % len(_LOOKS)][1],
        )
        for n, (name, points) in enumerate(families.items())
    )
    guides: list[Guide] = []
    if profile.peak is not None:
        roof = profile.peak.gflops
        guides.append(Guide(label=f"peak {short(roof)} GFLOP/s", y=roof, tone="alarm"))
        traffic = max(layer.gbytes_per_s for layer in profile.layers)
        xs = [point.x for points in families.values() for point in points]
        if xs:
            start, end = min(xs), min(roof / traffic, max(xs))
            if end > start:
                guides.append(
                    Guide(
                        label=f"{short(traffic)} GB/s, the most of any layer here",
                        through=((start, start * traffic), (end, end * traffic)),
                        tone="faint",
                    )
                )
    return Chart(
        title=f"{_name(one)}: roofline",
        summary=f"{sum(map(len, families.values()))} layers by arithmetic intensity and speed.",
        x=Axis(label="intensity", unit="FLOP/byte", log=True),
        y=Axis(label="speed", unit="GFLOP/s", log=True),
        series=series,
        guides=tuple(guides),
    )


def _table(one: MeasurementForm, profile: ProfileForm) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for layer in profile.layers:
        floor = _floor_ms(layer, profile)
        rows.append(
            (
                layer.index,
                layer.family,
                layer.kernel,
                layer.tensor,
                1e3 * layer.median_ms,
                layer.median_ms / profile.sum_ms,
                None if floor is None else 1e3 * floor,
                None if floor is None else floor / layer.median_ms,
                layer.gflops,
                layer.gbytes_per_s,
            )
        )
    return Table(
        name="layers",
        title=f"Layers of {_name(one)}",
        columns=(
            Column(name="layer", title="layer", style="fixed", decimals=0),
            Column(name="family", title="family"),
            Column(name="kernel", title="kernel"),
            Column(name="tensor", title="tensor"),
            Column(name="median_us", title="median", unit="µs", style="fixed", decimals=1),
            Column(name="share", title="share", unit="%", style="percent", decimals=1),
            Column(name="floor_us", title="floor", unit="µs", style="fixed", decimals=1),
            Column(name="share_of_peak", title="of peak", unit="%", style="percent", decimals=0),
            Column(name="gflops", title="speed", unit="GFLOP/s", style="fixed", decimals=1),
            Column(name="gbytes_per_s", title="traffic", unit="GB/s", style="fixed", decimals=1),
        ),
        rows=tuple(rows),
    )
