"""`tvm-mobilenet classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_table, print_warning, show_progress
from tvm_mobilenet.cli.options import ArtifactDir, AsJson


def classify(
    artifact: ArtifactDir,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", help="Picture files, any format Pillow reads.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Name the five likeliest classes of each picture.

    Pictures are prepared as the manifest says.
    """
    from tvm_mobilenet.classify import classify as classify_images

    with show_progress() as progress:
        progress.start("classifying")
        predictions = classify_images(artifact, images)
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
