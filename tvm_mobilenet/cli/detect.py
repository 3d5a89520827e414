"""`tvm-mobilenet detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_note, print_warning, show_progress
from tvm_mobilenet.cli.device import DeviceOptions, artifact_target, parse_cpus
from tvm_mobilenet.cli.options import (
    ArtifactDir,
    AuthKeyFile,
    BoardKey,
    Cpus,
    DeviceAddress,
    Emulated,
    TimeoutS,
    TrackerAddress,
)


def detect(
    artifact: ArtifactDir,
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="A picture file, any format Pillow reads.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.png|FILE.jpg",
            help="Draw the boxes on a copy of the picture.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", metavar="SCORE", help="Leave out what scores less, 0 to 1."),
    ] = 0.5,
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
) -> None:
    """Find objects in a picture, draw boxes around them and print them as JSON.

    Boxes are left, top, right and bottom in pixels of the picture.
    """
    from tvm_mobilenet.detect import detect as detect_objects

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
        progress.start("detecting")
        result = detect_objects(
            artifact, image, out=output, threshold=threshold, device=where, cpus=processors
        )
        progress.done()
    if result.is_random:
        print_warning("the weights are random: the objects mean nothing")
    if result.drawing is not None:
        print_note(f"drawn on {result.drawing}")
    print_json(result.to_dict())
