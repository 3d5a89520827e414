"""Options that several commands share, so that they are spelled the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ArtifactDir", "AsJson", "Logs", "Model", "NoLogs", "Target", "Threads", "Weights"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="mobilenet_v1_<alpha>_<resolution>, such as mobilenet_v1_0.5_160.",
        show_default=False,
    ),
]

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

Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Threads that compute; by default one on each fast core.",
        show_default=False,
    ),
]

NoLogs = Annotated[
    bool, typer.Option("--no-logs", help="Use computed schedules alone, no recorded ones.")
]

Logs = Annotated[
    Path | None,
    typer.Option(
        "--logs",
        metavar="DIR",
        help="Folder of tuning logs; by default your own, under XDG_DATA_HOME.",
        show_default=False,
    ),
]
