"""`tvm-mobilenet classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_table, print_warning, show_progress
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


def classify(
    artifact: ArtifactDir,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Picture files, any format Pillow reads.", show_default=False
        ),
    ],
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Name the five likeliest classes of each picture.

    Pictures are prepared as the manifest says.
    """
    from tvm_mobilenet.classify import classify as classify_images

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
        progress.start("classifying")
        predictions = classify_images(artifact, images, device=where, cpus=processors)
        progress.done()
    if any(prediction.is_random for prediction in predictions):
        print_warning("the weights are random: the classes mean nothing")
    if as_json:
        print_json([prediction.to_dict() for prediction in predictions])
        return
    print_table(
        ("picture", "class", "probability"),
        [
            (
                prediction.image if place == 0 else "",
                guess.label,
                f"{100 * guess.probability:.2f} %",
            )
            for prediction in predictions
            for place, guess in enumerate(prediction.guesses)
        ],
    )
