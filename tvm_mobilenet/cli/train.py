"""`tvm-mobilenet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_line, print_note, show_progress
from tvm_mobilenet.cli.options import Model, Weights
from tvm_mobilenet.errors import UsageError


def train(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR|digits",
            help="A folder with one sub-folder of pictures a class, or the built-in scans; to "
            "detect and to segment, scenes of them.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE.safetensors|FILE.onnx", show_default=False),
    ],
    weights: Weights = None,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Quantize the trained --weights and fine-tune them with the rounding of int8; "
            "writes a quantized ONNX file.",
        ),
    ] = False,
    prune: Annotated[
        float | None,
        typer.Option(
            "--prune",
            metavar="SHARE",
            help="Take channels out of the trained --weights until this share of the "
            "multiply-adds is left, and train what remains.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="By default what the data needs.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N")] = 0,
) -> None:
    """Train a model on a folder of pictures or on digits.

    A fifth of the pictures is held out, and the weights that do best on it are kept. After Ctrl-C
    the same command goes on from the last whole epoch.
    """
    from tvm_mobilenet.training.checkpoint import checkpoint_path
    from tvm_mobilenet.training.train import train as train_model

    if qat and prune is not None:
        raise UsageError("--qat and --prune were given together; prune first, then quantize")
    if qat:
        _train_quantized(model, data, output, weights, epochs, seed)
        return
    if weights is not None and prune is None:
        raise UsageError(f"weights {weights}: only --qat and --prune begin with weights")
    try:
        with show_progress() as progress:
            result = train_model(
                model,
                data,
                out=output,
                epochs=epochs,
                seed=seed,
                weights=weights,
                prune=prune,
                progress=progress,
            )
    except KeyboardInterrupt:
        if checkpoint_path(output).exists():
            print_note("the same command goes on from the last whole epoch")
        raise
    print_line(f"weights   {result.weights}")
    print_line(
        f"{result.measure:<9} {100 * result.held_out_accuracy:.2f} % of {result.held_out_images} "
        f"held-out pictures, after epoch {result.best_epoch} of {result.epochs}"
    )
    print_line(
        f"trained   on {result.train_images} pictures of {len(result.class_names)} classes, "
        f"seed {result.seed}, {result.seconds:.0f} s"
    )


def _train_quantized(
    model: str, data: str, output: Path, weights: Path | None, epochs: int | None, seed: int
) -> None:
    from tvm_mobilenet.qat import DEFAULT_EPOCHS, train_quantized

    with show_progress() as progress:
        result = train_quantized(
            model,
            data,
            out=output,
            weights=weights,
            epochs=DEFAULT_EPOCHS if epochs is None else epochs,
            seed=seed,
            progress=progress,
        )
    print_line(f"onnx      {result.onnx}")
    print_line(
        f"accuracy  {100 * result.held_out_accuracy:.2f} % after epoch {result.best_epoch} of "
        f"{result.epochs}, {100 * result.calibrated_accuracy:.2f} % before the first"
    )
