"""Does it compute the same: each output against each reference, and layer by layer."""

from __future__ import annotations

from tvm_mobilenet.report.data import (
    Axis,
    Cell,
    Chart,
    Column,
    Guide,
    Point,
    Section,
    Series,
    Table,
)
from tvm_mobilenet.report.figures import plural, scientific
from tvm_mobilenet.report.forms import DriftForm, VerificationForm
from tvm_mobilenet.report.read import Records

__all__ = ["parity_section"]

_EQUAL = 1e-9
"""Where a layer without any difference is drawn: below the last bit of float32."""


def parity_section(records: Records) -> Section | None:
    """Show what verifications found."""
    found = records.verifications
    if not found:
        return None
    failed = [one for one in found if not one.within]
    lead = (
        f"Every output agrees with its references in {plural(len(found), 'verification')}."
        if not failed
        else f"Outputs disagree in {len(failed)} of {plural(len(found), 'verification')}: "
        f"{', '.join(one.model for one in failed)}."
    )
    drifts = [(one, one.drift) for one in found if one.drift is not None]
    notes = [
        f"{one.model}: not compared with {name}: {why}"
        for one in found
        for name, why in one.not_compared.items()
    ]
    notes += [
        f"{one.model}: weights are random; outputs can agree, but mean nothing"
        for one in found
        if one.is_random
    ]
    tables = [_outputs(found), _accuracy(found), *(_drift_table(*one) for one in drifts)]
    return Section(
        name="parity",
        title="Parity and drift",
        lead=lead,
        charts=tuple(chart for one in drifts if (chart := _drift_chart(*one)) is not None),
        tables=tuple(table for table in tables if table is not None),
        notes=tuple(notes),
    )


def _outputs(found: list[VerificationForm]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    alarms = set()
    for one in found:
        for output in one.comparisons:
            if not output.within:
                alarms.add(len(rows))
            rows.append(
                (
                    one.model,
                    one.target,
                    output.output,
                    output.reference,
                    "agrees" if output.within else "DISAGREES",
                    output.dtype,
                    output.inputs,
                    output.relative_l2,
                    output.threshold.relative_l2,
                    output.max_abs_error,
                    output.top1_agreement,
                )
            )
    return Table(
        name="parity",
        title="Outputs against references",
        columns=(
            Column(name="model", title="model"),
            Column(name="target", title="target"),
            Column(name="output", title="output"),
            Column(name="reference", title="reference"),
            Column(name="verdict", title="verdict"),
            Column(name="dtype", title="dtype"),
            Column(name="inputs", title="inputs", style="fixed", decimals=0),
            Column(name="relative_l2", title="relative L2", style="scientific", decimals=1),
            Column(name="limit", title="limit", style="scientific", decimals=0),
            Column(name="max_abs_error", title="max error", style="scientific", decimals=1),
            Column(
                name="top1_agreement", title="same top-1", unit="%", style="percent", decimals=1
            ),
        ),
        rows=tuple(rows),
        alarms=frozenset(alarms),
        is_open=True,
    )


def _accuracy(found: list[VerificationForm]) -> Table | None:
    rows: list[tuple[Cell, ...]] = [
        (one.model, one.source, engine, one.accuracy.images, share)
        for one in found
        if one.accuracy is not None
        for engine, share in one.accuracy.accuracy.items()
    ]
    if not rows:
        return None
    return Table(
        name="accuracy",
        title="Accuracy on labelled pictures",
        columns=(
            Column(name="model", title="model"),
            Column(name="pictures", title="pictures"),
            Column(name="engine", title="engine"),
            Column(name="images", title="number", style="fixed", decimals=0),
            Column(name="accuracy", title="right", unit="%", style="percent", decimals=2),
        ),
        rows=tuple(rows),
    )


def _drift_chart(one: VerificationForm, drift: DriftForm) -> Chart | None:
    def points(exceeds: bool) -> tuple[Point, ...]:
        return tuple(
            Point(
                x=float(layer.index),
                y=max(layer.relative_l2, _EQUAL),
                title=f"{layer.index} {layer.kernel} ({layer.tensor or 'no tensor'}): "
                f"{scientific(layer.relative_l2)}",
            )
            for layer in drift.layers
            if layer.relative_l2 is not None and layer.exceeds == exceeds
        )

    within, beyond = points(exceeds=False), points(exceeds=True)
    if not within and not beyond:
        return _noise_chart(one, drift)
    first = next((layer for layer in drift.layers if layer.exceeds), None)
    word = (
        f"Layer {first.index}, {first.kernel}, is the first beyond it."
        if first
        else ("No layer is beyond it.")
    )
    series = (
        Series(name="within the limit", points=within, tone="ours"),
        Series(name="beyond the limit", points=beyond, tone="alarm", shape="diamond"),
    )
    return Chart(
        title=f"{one.model} for {one.target}: difference to ONNX Runtime after each layer",
        summary=f"Relative L2 error accumulated from the input; the limit is "
        f"{scientific(drift.threshold)}. {word}",
        x=Axis(label="layer", whole=True),
        y=Axis(label="relative L2 error", log=True),
        series=tuple(one for one in series if one.points),
        guides=(
            Guide(label=f"limit {scientific(drift.threshold)}", y=drift.threshold, tone="alarm"),
        ),
    )


def _noise_chart(one: VerificationForm, drift: DriftForm) -> Chart | None:
    """Draw what the integers of a quantized model lose, layer by layer."""

    def points(exceeds: bool) -> tuple[Point, ...]:
        return tuple(
            Point(
                x=float(layer.index),
                y=layer.float_snr_db,
                title=f"{layer.index} {layer.kernel}: {layer.float_snr_db:.1f} dB"
                + ("" if layer.steps is None else f", {plural(layer.steps, 'step')} apart"),
            )
            for layer in drift.layers
            if layer.float_snr_db is not None and layer.exceeds == exceeds
        )

    series = (
        Series(name="integers as ONNX Runtime's", points=points(exceeds=False), tone="ours"),
        Series(name="beyond one step", points=points(exceeds=True), tone="alarm", shape="diamond"),
    )
    if not any(one.points for one in series):
        return None
    apart = max((layer.steps for layer in drift.layers if layer.steps is not None), default=0)
    return Chart(
        title=f"{one.model} for {one.target}: what is left of the float model after each layer",
        summary="Signal over the noise of quantization, more is better. The compiled integers are "
        f"at most {plural(apart, 'step')} from ONNX Runtime's.",
        x=Axis(label="layer", whole=True),
        y=Axis(label="signal over noise", unit="dB"),
        series=tuple(one for one in series if one.points),
    )


def _drift_table(one: VerificationForm, drift: DriftForm) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            layer.index,
            layer.family,
            layer.kernel,
            layer.tensor,
            layer.relative_l2,
            layer.max_abs_error,
            layer.growth,
            layer.steps,
            layer.float_snr_db,
            "beyond the limit" if layer.exceeds else "",
        )
        for layer in drift.layers
    ]
    return Table(
        name="drift",
        title=f"Layers of {one.model} against ONNX Runtime",
        columns=(
            Column(name="layer", title="layer", style="fixed", decimals=0),
            Column(name="family", title="family"),
            Column(name="kernel", title="kernel"),
            Column(name="tensor", title="tensor"),
            Column(name="relative_l2", title="relative L2", style="scientific", decimals=1),
            Column(name="max_abs_error", title="max error", style="scientific", decimals=1),
            Column(name="growth", title="growth", style="fixed", decimals=2),
            Column(name="steps", title="integer steps", style="fixed", decimals=0),
            Column(name="float_snr_db", title="to float", unit="dB", style="fixed", decimals=1),
            Column(name="verdict", title=""),
        ),
        rows=tuple(rows),
        alarms=frozenset(n for n, layer in enumerate(drift.layers) if layer.exceeds),
    )
