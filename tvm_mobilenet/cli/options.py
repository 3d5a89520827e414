"""Options that several commands share, so that they are spelled the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ArtifactDir",
    "AsJson",
    "AuthKeyFile",
    "BoardKey",
    "Cpus",
    "DeviceAddress",
    "Emulated",
    "Logs",
    "Model",
    "NoLogs",
    "Target",
    "Threads",
    "TimeoutS",
    "TrackerAddress",
    "Weights",
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name such as mobilenet_v1_0.5_160 or mobilenet_v3_small_1.0_224; "
        "`tvm-mobilenet models` lists them.",
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
        help="A .safetensors or .pth file, of ours, torchvision's or timm's; without it the "
        "weights are random, with a fixed seed.",
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

TrackerAddress = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        metavar="HOST:PORT",
        help="Ask this tracker for a board of --key.",
        show_default=False,
    ),
]

BoardKey = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="The kind of board, as `devices` lists it.",
        show_default=False,
    ),
]

DeviceAddress = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="HOST:PORT",
        help="A board, without a tracker.",
        show_default=False,
    ),
]

Emulated = Annotated[
    bool,
    typer.Option(
        "--emulated", help="An emulated board of the target, started for the call if none runs."
    ),
]

AuthKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--auth-key-file",
        metavar="FILE",
        help="The key that tracker and board share (mode 600, 16 bytes or more).",
        show_default=False,
    ),
]

TimeoutS = Annotated[
    float | None,
    typer.Option(
        "--timeout-s",
        metavar="S",
        help="For each step on a board: queue, upload, load, run. [default: 60]",
        show_default=False,
    ),
]

Cpus = Annotated[
    str | None,
    typer.Option(
        "--cpus",
        metavar="LIST",
        help="Processors to compute on, such as 4,5 or 4-7; by default the fast ones.",
        show_default=False,
    ),
]
