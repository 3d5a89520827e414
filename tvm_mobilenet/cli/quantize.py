"""`tvm-mobilenet quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, show_progress
from tvm_mobilenet.cli.options import AsJson, Weights
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.report import QuantizeReport

_DEFAULTS = QuantizeOptions()


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ONNX",
            help="A name such as mobilenet_v1_0.5_160, weights of ours, or a float32 ONNX file.",
            show_default=False,
        ),
    ],
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            metavar="DIR|digits|random",
            help="What ranges are found on: a folder of pictures, the built-in scans, or noise.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.onnx", show_default=False)
    ],
    weights: Weights = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="minmax, percentile, entropy or mse: how ranges are found.",
        ),
    ] = _DEFAULTS.method,
    percentile: Annotated[
        float, typer.Option("--percentile", metavar="P", help="For --method percentile.")
    ] = _DEFAULTS.percentile,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", help="Pictures to look at, at most.")
    ] = _DEFAULTS.samples,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize/--no-equalize", help="Even out channels across neighbouring layers."
        ),
    ] = _DEFAULTS.equalize,
    bias_correction: Annotated[
        bool,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Take the mean error of rounded weights out of the biases.",
        ),
    ] = _DEFAULTS.bias_correction,
    keep_float: Annotated[
        str,
        typer.Option(
            "--keep-float",
            metavar="auto|none|NAME,...",
            help="Layers to leave in float32; auto finds the worst, within the budgets.",
        ),
    ] = "none",
    size_budget: Annotated[
        float,
        typer.Option(
            "--size-budget", metavar="SHARE", help="With auto: by what the file may grow."
        ),
    ] = _DEFAULTS.size_budget,
    latency_budget: Annotated[
        float,
        typer.Option(
            "--latency-budget",
            metavar="SHARE",
            help="With auto: by what the time may grow, by multiply-adds.",
        ),
    ] = _DEFAULTS.latency_budget,
    seed: Annotated[int, typer.Option("--seed", metavar="N")] = _DEFAULTS.seed,
    no_sensitivity: Annotated[
        bool,
        typer.Option("--no-sensitivity", help="Leave out what each layer costs alone: quicker."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a model to int8 and say what each layer lost.

    The file is standard QDQ ONNX: `compile` makes integer kernels of it, and other engines run it.
    """
    from tvm_mobilenet.quantize.quantizer import quantize_model

    names = tuple(name.strip() for name in keep_float.split(",") if name.strip())
    options = QuantizeOptions(
        method=method,  # type: ignore[arg-type]  # checked by the record
        percentile=percentile,
        equalize=equalize,
        bias_correction=bias_correction,
        samples=samples,
        seed=seed,
        keep_float={"auto": "auto", "none": ()}.get(keep_float, names),  # type: ignore[arg-type]
        size_budget=size_budget,
        latency_budget=latency_budget,
    )
    with show_progress() as progress:
        report = quantize_model(
            model,
            calibration,
            out=output,
            weights=weights,
            options=options,
            sensitivity=not no_sensitivity,
            progress=progress,
        )
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: QuantizeReport) -> None:
    print_table(
        ("layer", "operator", "MMACs", "kweights", "SNR dB", "alone dB", "dtype"),
        [
            (
                layer.name,
                layer.operator,
                f"{layer.macs / 1e6:.2f}",
                f"{layer.weights / 1e3:.1f}",
                _decibel(layer.snr_db),
                _decibel(layer.alone_snr_db),
                "float32" if layer.is_float else "int8",
            )
            for layer in report.layers
        ],
    )
    worst = sorted(
        (layer for layer in report.layers if layer.alone_snr_db is not None),
        key=lambda layer: layer.alone_snr_db or 0,
    )[:3]
    kept = report.kept_float
    print_line(f"onnx       {report.path}  {report.size_bytes / 1e6:.2f} MB")
    print_line(f"float      {report.float_size_bytes / 1e6:.2f} MB")
    print_line(f"ranges     {report.method}, {report.inputs} inputs of {report.calibration}")
    print_line(
        f"corrected  {report.equalized_pairs} pairs of layers equalized, "
        f"{report.corrected_biases} biases corrected"
    )
    if worst:
        print_line(f"costliest  {', '.join(layer.name for layer in worst)}")
    print_line(f"in float   {', '.join(kept) if kept else 'none'}")
    print_line(f"output     {_decibel(report.output_snr_db)} dB over the noise")


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
