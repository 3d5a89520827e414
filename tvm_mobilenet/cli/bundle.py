"""`tvm-mobilenet bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, show_progress
from tvm_mobilenet.cli.options import ArtifactDir, AsJson

if TYPE_CHECKING:
    from tvm_mobilenet.bundle import Bundle


def bundle(
    artifact: ArtifactDir,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE.tar.gz", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Pack a compiled model with its runtime and a C interface, for a product.

    No Python and no RPC is in it. The sample program in it is built for the target and tried, here
    or in an emulator.
    """
    from tvm_mobilenet.bundle import bundle_artifact

    with show_progress() as progress:
        made = bundle_artifact(artifact, out=output, progress=progress)
    if as_json:
        print_json(made.to_dict())
    else:
        _print(made)


def _print(made: Bundle) -> None:
    print_line(f"bundle    {made.path}  {made.size_bytes / 1e6:.2f} MB")
    print_line(f"model     {made.model}")
    print_line(f"target    {made.target}, {made.machine}")
    print_line(
        f"needs     {', '.join(f'{name} {version}' for name, version in made.needs.items())}"
    )
    print_line(f"tried     {made.trial.where}")
    if made.trial.peak_bytes is not None:
        note = ", the emulator's own included" if made.trial.is_emulated else ""
        print_line(f"memory    {made.trial.peak_bytes / 1e6:.1f} MB at most{note}")
        print_line(
            "start-up  not given: emulated time says nothing about the board's"
            if made.trial.start_ms is None
            else f"start-up  {made.trial.start_ms:.1f} ms to a model that is ready"
        )
    print_line("")
    print_table(
        ("part", "unpacked"),
        [
            *((name, f"{size / 1e6:.2f} MB") for name, size in made.parts.items()),
            ("all", f"{made.unpacked_bytes / 1e6:.2f} MB"),
        ],
    )
