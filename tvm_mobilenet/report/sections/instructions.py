"""How many instructions an inference retires on an emulated board, beside others and by layer."""

from __future__ import annotations

from tvm_mobilenet.report.data import Bar, BarChart, Cell, Column, Section, Table
from tvm_mobilenet.report.figures import short
from tvm_mobilenet.report.forms import CountedForm, CountForm
from tvm_mobilenet.report.read import Records
from tvm_mobilenet.report.sections.latency import OURS

__all__ = ["instructions_section"]

_CLASSES = ("fma", "simd", "load_store", "branch", "other")


def instructions_section(records: Records) -> Section | None:
    """Show what was counted: whole models, engines beside each other, layers."""
    compared = [result for one in records.counted_engines for result in one.results]
    if not records.counts and not compared:
        return None
    charts: list[BarChart] = []
    tables: list[Table] = []
    if compared:
        charts.append(_peers(compared))
        tables.append(_peers_table(compared))
    if records.counts:
        tables.append(_whole(records.counts))
    for one in records.counts:
        charts.append(_layers(one))
        tables.append(_layers_table(one))
    return Section(
        name="instructions",
        title="Instructions",
        lead="Retired instructions of one inference on an emulated processor, one thread: exact, "
        "and the same at every run. They are no time. The solid part of a bar is the floor, the "
        "multiply-adds over those that one instruction does.",
        charts=tuple(charts),
        tables=tuple(tables),
    )


def _peers(compared: list[CountedForm]) -> BarChart:
    bars = []
    for result in compared:
        heading = f"{result.model}, {result.target}"
        for engine in result.engines:
            if engine.absence or not engine.instructions:
                continue
            is_ours = engine.engine in ("ours", OURS)
            bars.append(
                Bar(
                    label=OURS if is_ours else engine.engine,
                    value=engine.instructions / 1e6,
                    text=f"{short(engine.instructions / 1e6, 4)} M",
                    tone="ours" if is_ours else "plain",
                    heading=heading,
                )
            )
            heading = ""
    return BarChart(
        title="Millions of instructions for one inference, less is better",
        summary=f"{len(bars)} engines; the table below has the figures.",
        unit="M",
        bars=tuple(bars),
    )


def _peers_table(compared: list[CountedForm]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    ours = set()
    for result in compared:
        for engine in result.engines:
            if engine.engine in ("ours", OURS):
                ours.add(len(rows))
            rows.append(
                (
                    result.model,
                    result.target,
                    OURS if engine.engine in ("ours", OURS) else engine.engine,
                    engine.version,
                    None if engine.absence else engine.instructions / 1e6,
                    engine.absence,
                )
            )
    return Table(
        name="instructions_of_engines",
        title="Engines side by side",
        columns=(
            Column(name="model", title="model"),
            Column(name="target", title="target"),
            Column(name="engine", title="engine"),
            Column(name="version", title="version"),
            Column(
                name="instructions_m", title="instructions", unit="M", style="fixed", decimals=2
            ),
            Column(name="note", title="why not"),
        ),
        rows=tuple(rows),
        ours=frozenset(ours),
    )


def _whole(counts: list[CountForm]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            one.model,
            one.target,
            one.emulated_cpu,
            one.instructions_per_inference / 1e6,
            one.floor / 1e6,
            one.instructions_per_inference / one.floor,
            *(one.classes.get(name, 0) / 1e6 for name in _CLASSES),
            one.outside_layers / 1e6,
        )
        for one in counts
    ]
    return Table(
        name="instructions",
        title="Whole inferences",
        columns=(
            Column(name="model", title="model"),
            Column(name="target", title="target"),
            Column(name="emulated_cpu", title="processor"),
            *(
                Column(name=f"{name}_m", title=title, unit="M", style="fixed", decimals=2)
                for name, title in (("instructions", "instructions"), ("floor", "floor"))
            ),
            Column(name="over_floor", title="over floor", style="fixed", decimals=3),
            *(
                Column(name=f"{name}_m", title=title, unit="M", style="fixed", decimals=2)
                for name, title in (
                    *((name, name.replace("_", "/")) for name in _CLASSES),
                    ("outside_layers", "outside layers"),
                )
            ),
        ),
        rows=tuple(rows),
    )


def _layers(one: CountForm) -> BarChart:
    most = max(one.layers, key=lambda layer: layer.instructions, default=None)
    return BarChart(
        title=f"{one.model} for {one.target}: millions of instructions by layer",
        summary=f"{len(one.layers)} layers retire "
        f"{short(sum(layer.instructions for layer in one.layers) / 1e6, 4)} M instructions"
        + (f"; the most in layer {most.index}, {most.kernel}." if most else "."),
        unit="M",
        bars=tuple(
            Bar(
                label=f"{layer.index}  {layer.kernel}",
                value=layer.instructions / 1e6,
                floor=min(layer.floor, layer.instructions) / 1e6,
                text=f"{short(layer.instructions / 1e6)} M",
                tone="ours",
            )
            for layer in one.layers
        ),
    )


def _layers_table(one: CountForm) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            layer.index,
            layer.family,
            layer.kernel,
            layer.tensor,
            layer.instructions,
            layer.floor,
            layer.instructions / layer.floor if layer.floor else None,
            *(layer.classes.get(name, 0) for name in _CLASSES),
        )
        for layer in one.layers
    ]
    return Table(
        name="instructions_by_layer",
        title=f"Layers of {one.model} for {one.target}",
        columns=(
            Column(name="layer", title="layer", style="fixed", decimals=0),
            Column(name="family", title="family"),
            Column(name="kernel", title="kernel"),
            Column(name="tensor", title="tensor"),
            Column(name="instructions", title="instructions", style="fixed", decimals=0),
            Column(name="floor", title="floor", style="fixed", decimals=0),
            Column(name="over_floor", title="over floor", style="fixed", decimals=2),
            *(
                Column(name=name, title=name.replace("_", "/"), style="fixed", decimals=0)
                for name in _CLASSES
            ),
        ),
        rows=tuple(rows),
    )
