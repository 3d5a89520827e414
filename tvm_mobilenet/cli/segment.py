"""`tvm-mobilenet segment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import (
    print_json,
    print_line,
    print_table,
    print_warning,
    show_progress,
)
from tvm_mobilenet.cli.device import DeviceOptions, artifact_target, parse_cpus
from tvm_mobilenet.cli.options import (
    ArtifactDir,
    AsJson,
    AuthKeyFile,
    BoardKey,
    Cpus,
    DeviceAddress,
    Emulated,
    TimeoutS,
    TrackerAddress,
)


def segment(
    artifact: ArtifactDir,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Picture files, any format Pillow reads.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where masks and overlays go."),
    ] = Path(),
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Write which class each pixel of a picture is of: a mask, and the picture under its colours.

    NAME.mask.png has the picture's size and the classes' numbers for values.
    """
    from tvm_mobilenet.segmentation.segment import segment as segment_images

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
        progress.start("segmenting")
        results = segment_images(artifact, images, out=output, device=where, cpus=processors)
        progress.done()
    if any(result.is_random for result in results):
        print_warning("the weights are random: the classes mean nothing")
    if as_json:
        print_json([result.to_dict() for result in results])
        return
    print_table(
        ("picture", "class", "share"),
        [
            (result.image if place == 0 else "", found.label, f"{100 * found.share:.2f} %")
            for result in results
            for place, found in enumerate(result.classes)
        ],
    )
    for result in results:
        print_line(f"mask     {result.mask}")
        print_line(f"overlay  {result.overlay}")
