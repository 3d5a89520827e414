"""`tvm-mobilenet report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tvm_mobilenet.cli.console import print_line, print_text, print_warning


def report(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD...",
            help="JSON that other commands wrote, tuning logs, artifact folders.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="By default report.html; of the other formats, standard output.",
            show_default=False,
        ),
    ] = None,
    format_: Annotated[
        Literal["html", "md", "json", "csv"] | None,
        typer.Option("--format", help="By default what FILE ends in.", show_default=False),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare",
            metavar="OLD",
            help="Say what changed since this older record, noise taken into account; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", show_default=False)
    ] = None,
) -> None:
    """Make one page of what was recorded: it opens offline, prints, and fits a telephone.

    Takes what `measure --json`, `verify --json`, `tune --json`, `run`, `explore` and the scripts in
    benchmarks/ write. Each is known by what it holds.
    """
    from tvm_mobilenet.report.figures import plural
    from tvm_mobilenet.report.write import build_document, render, write_report

    if output is None and format_ not in (None, "html"):
        document = build_document(records, compare=compare or (), title=title)
        print_text(render(document, format_))
        return
    path = output or Path("report.html")
    document = write_report(records, out=path, format=format_, compare=compare or (), title=title)
    print_line(f"report    {path}  {path.stat().st_size / 1e3:.0f} kB")
    print_line(f"sections  {', '.join(section.title for section in document.sections)}")
    if document.meta.get("regressions"):
        count = plural(document.meta["regressions"], "figure")
        print_warning(f"{count} regressed, see Changes")
