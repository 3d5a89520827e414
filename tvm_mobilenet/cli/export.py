"""`tvm-mobilenet export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_line, show_progress
from tvm_mobilenet.cli.options import Model, Weights


def export(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.onnx", show_default=False)
    ],
    weights: Weights = None,
) -> None:
    """Export a model to ONNX, compared with PyTorch first."""
    from tvm_mobilenet.export import export_onnx

    with show_progress() as progress:
        exported = export_onnx(model, out=output, weights=weights, progress=progress)
    print_line(f"onnx     {exported.path}")
    print_line(f"sha256   {exported.sha256}")
    print_line(f"weights  {exported.origin.weights}")
    for kind, tensors in (("input", exported.inputs), ("output", exported.outputs)):
        for tensor in tensors:
            shape = "x".join(map(str, tensor.shape))
            print_line(f"{kind:<8} {tensor.name}: {tensor.dtype} {shape}")
    print_line(f"parity   {exported.max_abs_error:.1e} largest difference to PyTorch")
