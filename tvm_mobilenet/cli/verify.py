"""`tvm-mobilenet verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_note, print_table, show_progress
from tvm_mobilenet.cli.device import DeviceOptions, artifact_target, parse_cpus
from tvm_mobilenet.cli.options import (
    ArtifactDir,
    AsJson,
    AuthKeyFile,
    BoardKey,
    Cpus,
    DeviceAddress,
    Emulated,
    Threads,
    TimeoutS,
    TrackerAddress,
)
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.verify.accuracy import AccuracyReport
    from tvm_mobilenet.verify.drift import DriftReport
    from tvm_mobilenet.verify.report import VerifyReport


def verify(
    artifact: ArtifactDir,
    inputs: Annotated[
        int | None,
        typer.Option("--inputs", metavar="N", help="How many seeded inputs. [default: 16]"),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="DIR|digits",
            help="Compare on pictures; with one sub-folder a class, accuracy too.",
            show_default=False,
        ),
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Compare every layer, to find where they part.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="The weight file, for PyTorch, where it is not found beside DIR.",
            show_default=False,
        ),
    ] = None,
    float_onnx: Annotated[
        Path | None,
        typer.Option(
            "--float-onnx",
            metavar="FILE",
            help="For --drift of an int8 model: the float model that it was quantized from.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Compare a compiled model with ONNX Runtime and PyTorch.

    The model runs here or on a board, the others here.
    Ends with exit code 3 where an output is further off than its threshold.
    """
    from tvm_mobilenet.verify.report import DEFAULT_INPUTS
    from tvm_mobilenet.verify.report import verify as verify_artifact

    if inputs is not None and images is not None:
        raise UsageError("--inputs and --images were both given: pictures take the place of inputs")
    options = DeviceOptions(
        tracker=tracker,
        key=key,
        device=device,
        emulated=emulated,
        auth_key_file=auth_key_file,
        timeout_s=timeout_s,
    )
    processors = parse_cpus(cpus)
    with (
        show_progress() as progress,
        options.open(lambda: artifact_target(artifact), progress) as where,
    ):
        report = verify_artifact(
            artifact,
            inputs=DEFAULT_INPUTS if inputs is None else inputs,
            images=images,
            drift=drift,
            weights=weights,
            float_onnx=float_onnx,
            threads=threads,
            device=where,
            cpus=processors,
            progress=progress,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)
    report.check()


def _print(report: VerifyReport) -> None:
    print_line(f"{report.model} for {report.target}, on {report.inputs} inputs ({report.source})")
    if report.is_random:
        print_line(f"weights are {report.weights}: outputs can agree, but mean nothing")
    print_table(
        (
            "reference",
            "output",
            "max error",
            "relative L2",
            "at most",
            "cosine",
            "SNR",
            "top-1",
            "top-5",
            "",
        ),
        [
            (
                found.reference,
                found.output,
                f"{found.max_abs_error:.1e}",
                f"{found.relative_l2:.1e}",
                f"{found.threshold.relative_l2:.0e}",
                f"{found.cosine:.6f}",
                "exact" if found.snr_db is None else f"{found.snr_db:.0f} dB",
                _share(found.top1_agreement),
                _share(found.top5_agreement),
                "within" if found.is_within else "EXCEEDS",
            )
            for found in report.comparisons
        ],
    )
    for reference, reason in report.not_compared.items():
        print_note(f"not compared with {reference}: {reason}")
    if report.accuracy:
        _print_accuracy(report.accuracy)
    if report.drift:
        _print_drift(report.drift)


def _print_accuracy(accuracy: AccuracyReport) -> None:
    print_line("")
    print_table(
        ("accuracy", f"of {accuracy.images} pictures", "other class than the compiled model"),
        [
            (
                engine,
                f"{100 * accuracy.accuracy(engine):.2f} %",
                len(accuracy.disagreements[engine]) if engine in accuracy.disagreements else None,
            )
            for engine in accuracy.correct
        ],
    )


def _print_drift(drift: DriftReport) -> None:
    print_line("")
    if drift.is_integer:
        _print_steps(drift)
        return
    print_table(
        ("layer", "kernel", "tensor", "relative L2", "max error", "growth", ""),
        [
            (
                layer.index,
                layer.kernel,
                layer.tensor,
                "" if layer.relative_l2 is None else f"{layer.relative_l2:.1e}",
                "" if layer.max_abs_error is None else f"{layer.max_abs_error:.1e}",
                "" if layer.growth is None else f"{layer.growth:.1f}x",
                "EXCEEDS" if layer.exceeds else "",
            )
            for layer in drift.layers
        ],
    )
    first = drift.first_departed
    found = f"layer {first.index} ({first.tensor})" if first else "none"
    print_line(f"first layer beyond a relative L2 of {drift.threshold:.0e}: {found}")


def _print_steps(drift: DriftReport) -> None:
    print_table(
        ("layer", "kernel", "tensor", "steps", "relative L2", "SNR to float", ""),
        [
            (
                layer.index,
                layer.kernel,
                layer.tensor,
                layer.steps,
                "" if layer.relative_l2 is None else f"{layer.relative_l2:.1e}",
                "" if layer.float_snr_db is None else f"{layer.float_snr_db:.1f} dB",
                "EXCEEDS" if layer.exceeds else "",
            )
            for layer in drift.layers
        ],
    )
    first = drift.first_departed
    found = f"layer {first.index} ({first.tensor})" if first else "none"
    print_line(f"first layer more than one step from ONNX Runtime's integers: {found}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
