"""Options that several commands share, so that they are spelled the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ArtifactDir", "AsJson", "Target", "Weights"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

ArtifactDir = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `compile` wrote.", show_default=False)
]

Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME|FILE.toml",
        help="What to compile for; `tvm-mobilenet targets` lists the names.",
    ),
]

Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="A .safetensors or .pth file; without it the weights are random, with a fixed seed.",
        show_default=False,
    ),
]
