"""`tvm-mobilenet run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_note, print_table, show_progress
from tvm_mobilenet.cli.device import DeviceOptions
from tvm_mobilenet.cli.options import (
    AsJson,
    AuthKeyFile,
    BoardKey,
    DeviceAddress,
    Emulated,
    NoLogs,
    Target,
    TimeoutS,
    TrackerAddress,
    Weights,
)
from tvm_mobilenet.cli.targets import load_shown

if TYPE_CHECKING:
    from tvm_mobilenet.run import RunReport


def run(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A model's name, weights of ours or an ONNX file; by default a small model "
            "trained on digits.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="digits|DIR",
            help="Train on it, unless there are weights, and compare accuracy on a held-out fifth.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    target: Target = "host",
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="By default what the data needs.")
    ] = None,
    no_logs: NoLogs = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="By default out/MODEL.", show_default=False
        ),
    ] = None,
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    as_json: AsJson = False,
) -> None:
    """Do it all: train or load, export, compile, verify, measure.

    The library is timed beside ONNX Runtime, turn by turn, or alone on a board. Weights that an
    equal run trained before are used again. What was found is saved as run.json in the folder.
    """
    from tvm_mobilenet.run import run as run_all

    options = DeviceOptions(
        tracker=tracker,
        key=key,
        device=device,
        emulated=emulated,
        auth_key_file=auth_key_file,
        timeout_s=timeout_s,
    )
    options.check()
    with show_progress() as progress:
        spec = load_shown(target, progress)  # detected once; `run` finds it remembered
        with options.open(lambda: spec, progress) as where:
            report = run_all(
                model,
                data=data,
                weights=weights,
                target=target,
                out=output,
                epochs=epochs,
                use_logs=not no_logs,
                device=where,
                progress=progress,
            )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


def _print(report: RunReport) -> None:
    print_line(f"model    {report.model} for {report.target}")
    print_line(f"weights  {report.weights}{_training(report)}")
    print_line(f"library  {report.artifact}/model.so, {report.library_bytes / 1e6:.1f} MB")
    if report.not_run:
        print_note(f"neither verified nor timed: {report.not_run}")
        return
    print_line("")
    engines = ("compiled", "onnxruntime", "pytorch")
    print_table(
        ("", *engines, ""),
        [
            *(
                (label, *(cells.get(engine) for engine in engines), remark)
                for label, cells, remark in (*_parity(report), *_latency(report))
            )
        ],
    )
    if report.is_random:
        print_line("the weights are random: outputs agree, but mean nothing")
    print_line("")
    print_line(f"saved in {report.artifact}/run.json")


def _training(report: RunReport) -> str:
    if report.training is None:
        return ""
    if report.training["reused"]:
        return ", trained before"
    return f", trained for {report.training['epochs']} epochs in {report.training['seconds']:.0f} s"


_Row = tuple[str, dict[str, str], str]
"""Label, cell by engine, remark."""


def _parity(report: RunReport) -> list[_Row]:
    if report.verification is None:
        return []
    found = report.verification
    rows: list[_Row] = []
    if found.accuracy:
        right = found.accuracy
        cells = {engine: f"{100 * right.accuracy(engine):.2f} %" for engine in right.correct}
        rows.append(("accuracy", cells, f"{right.images} held-out pictures"))
        differ = {engine: str(len(names)) for engine, names in right.disagreements.items()}
        rows.append(("pictures it sees differently", differ, "must be none"))
    for output in dict.fromkeys(one.output for one in found.comparisons):
        of_output = [one for one in found.comparisons if one.output == output]
        cells = {one.reference: f"{one.relative_l2:.1e}" for one in of_output}
        limit = max(one.threshold.relative_l2 for one in of_output)
        remark = f"relative L2 of {output}, at most {limit:.0e}"
        rows.append(("difference to it", cells, remark))
    return rows


def _latency(report: RunReport) -> list[_Row]:
    return [
        (
            f"latency, {row.threads} thread{'s' if row.threads > 1 else ''}",
            {
                times.engine: f"{times.median_ms:.3f} ms"
                for times in (row.compiled, row.onnxruntime)
                if times is not None
            },
            "on the board, alone"
            if row.ratio is None
            else f"{row.ratio:.2f}x the time of ONNX Runtime",
        )
        for row in report.timing
    ]
