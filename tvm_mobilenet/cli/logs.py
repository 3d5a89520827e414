"""`tvm-mobilenet logs`: what is in the tuning logs, and putting it in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, print_warning
from tvm_mobilenet.cli.options import AsJson, Logs, Target

if TYPE_CHECKING:
    from tvm_mobilenet.tuning.store import Reading

LogFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A log, of any place.", show_default=False)
]


def logs(context: typer.Context) -> None:
    """See and keep the tuning logs: the project's, and your own."""
    del context


def list_(logs: Logs = None, as_json: AsJson = False) -> None:
    """List the logs: how many records, kernels and faulty lines each has."""
    from tvm_mobilenet.tuning.keeping import describe_logs

    found = describe_logs(logs)
    if as_json:
        print_json(found)
        return
    print_table(
        ("target", "store", "records", "accepted", "kernels", "rejected", "left out", "file"),
        [
            (
                log.target,
                log.store,
                log.records,
                log.accepted,
                log.kernels,
                log.rejected,
                log.left_out,
                log.path,
            )
            for log in found
        ],
    )


def show(target: Target = "host", logs: Logs = None, as_json: AsJson = False) -> None:
    """Show the best record of every kernel for a target, and what was left out and why."""
    from tvm_mobilenet.targets import load_target
    from tvm_mobilenet.tuning.keeping import best_records, left_out

    spec = load_target(target)
    best = best_records(spec, logs)
    if as_json:
        print_json(best)
        return
    print_table(
        ("kernel", "gain", "cost", "threads", "cache", "measured on", "date", "plan"),
        [
            (
                entry.name,
                f"{1 / entry.ratio:.3f}x",
                f"{entry.record.cost:.4f} {entry.unit}",
                entry.record.conditions.threads,
                entry.record.conditions.cache,
                entry.record.conditions.device
                + (" (emulated)" if entry.record.conditions.is_emulated else ""),
                entry.record.conditions.date[:10],
                entry.plan,
            )
            for entry in best
        ],
    )
    for problem in left_out(spec, logs):
        print_warning(f"{problem.place}: {problem.reason}")


def merge(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Another store: a folder of targets' folders.", show_default=False
        ),
    ],
    logs: Logs = None,
) -> None:
    """Add the records of another store to yours; what is there already is left alone."""
    from tvm_mobilenet.tuning.keeping import merge_store

    for target, count, reading in merge_store(source, logs):
        _say(f"{target}: {count} records added", reading)


def prune(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Whose log.", show_default=False)],
    keep_trials: Annotated[
        bool,
        typer.Option(
            "--keep-trials", help="Keep what was merely measured or rejected; drop faulty lines."
        ),
    ] = False,
    logs: Logs = None,
) -> None:
    """Rewrite a log with the best records alone; faulty lines and what was spent are dropped."""
    from tvm_mobilenet.tuning.keeping import prune_log

    before, kept = prune_log(target, logs, keep_trials=keep_trials)
    total = len(before.trials) + len(before.sessions) + len(before.problems)
    print_line(f"{target}: {kept} of {total} lines kept")


def export(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Whose records.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", show_default=False)],
    logs: Logs = None,
) -> None:
    """Write the best records of a target into one file, to hand on."""
    from tvm_mobilenet.tuning.keeping import export_log

    print_line(f"{output}: {export_log(target, output, logs)} records")


def import_(file: LogFile, logs: Logs = None) -> None:
    """Add the records of a file to your logs, each to its own target's."""
    from tvm_mobilenet.tuning.keeping import import_log

    counts, reading = import_log(file, logs)
    said = ", ".join(f"{target}: {count}" for target, count in counts.items()) or "none"
    _say(f"records added: {said}", reading)


def _say(text: str, reading: Reading) -> None:
    if reading.problems:
        print_warning(reading.summary)
    print_line(text)
