"""`tvm-mobilenet compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_line, show_progress
from tvm_mobilenet.cli.options import Logs, NoLogs, Target, Weights
from tvm_mobilenet.cli.targets import load_shown

if TYPE_CHECKING:
    from tvm_mobilenet.artifact import Artifact


def compile_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE.onnx",
            help="A name such as mobilenet_v1_0.5_160, weights of ours, or a convolutional network "
            "of your own.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", show_default=False)],
    weights: Weights = None,
    target: Target = "host",
    no_logs: NoLogs = False,
    logs: Logs = None,
    no_onnx: Annotated[
        bool, typer.Option("--no-onnx", help="Leave the ONNX file out of DIR; no `verify` then.")
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="float32|float16|bfloat16",
            help="Of weights and between layers; inputs and outputs stay as they are. 16 bits only "
            "where the target computes with them.",
        ),
    ] = "float32",
    accumulate: Annotated[
        str | None,
        typer.Option(
            "--accumulate",
            metavar="float32|float16",
            help="Of the sums of --dtype float16; without it float16 on a CPU, float32 on a GPU.",
            show_default=False,
        ),
    ] = None,
    cc: Annotated[
        str | None,
        typer.Option(
            "--cc",
            metavar="COMMAND",
            help="Link with this compiler, not with the target's own choice.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compile a model into a folder: library, manifest and ONNX.

    The folder appears whole or not at all. The library loads with TVM's runtime alone; parameters
    are inside, packed for the target.
    """
    from tvm_mobilenet.workflow import compile_model

    with show_progress() as progress:
        artifact = compile_model(
            model,
            out=output,
            weights=weights,
            target=load_shown(target, progress),
            keep_onnx=not no_onnx,
            use_logs=not no_logs,
            logs=logs,
            compiler=cc,
            dtype=dtype,
            accumulate=accumulate,
            progress=progress,
        )
    for line in summary(artifact):
        print_line(line)


def summary(artifact: Artifact) -> list[str]:
    """Say in a few lines what an artifact is."""
    manifest = artifact.manifest
    counts = manifest.schedule.model_dump()
    origins = ", ".join(f"{count} {origin}" for origin, count in counts.items() if count)
    lines = [
        f"library   {artifact.library_path}  {manifest.library.size_bytes / 1e6:.1f} MB, "
        f"{manifest.library.machine}",
        f"model     {manifest.model.name}",
        f"weights   {manifest.model.weights}",
        f"target    {manifest.target.name}",
        f"kernels   {len(manifest.layers)}: {origins}",
    ]
    if manifest.accumulate is not None:
        lines.insert(3, f"dtype     {manifest.dtype}, summed in {manifest.accumulate}")
    gpu = manifest.target.spec.get("gpu")
    if gpu:
        lines.append(f"runs on   OpenCL, made for {gpu['model']}")
    if manifest.dtype == "int8":
        lines.insert(3, "dtype     int8")
        lines += [
            f"float32   {island.tensor}: {', '.join(dict.fromkeys(island.operators))} "
            f"({island.reason})"
            for island in manifest.float_islands
        ]
    if manifest.schedule.tuned and manifest.schedule.computed:
        names = {layer.kernel: None for layer in manifest.layers if layer.origin == "computed"}
        lines.append(f"untuned   {', '.join(names)}")
    return lines
