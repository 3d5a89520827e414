"""`tvm-mobilenet tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import print_json, print_line, print_table, resumable, show_progress
from tvm_mobilenet.cli.device import DeviceOptions, parse_cpus
from tvm_mobilenet.cli.options import (
    AsJson,
    AuthKeyFile,
    BoardKey,
    Cpus,
    DeviceAddress,
    Emulated,
    Logs,
    Target,
    Threads,
    TimeoutS,
    TrackerAddress,
)
from tvm_mobilenet.cli.targets import load_shown
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.tuning.report import TaskReport, TuningReport


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE.onnx",
            help="What to tune; of weights only the shapes count.",
            show_default=False,
        ),
    ],
    target: Target = "host",
    trials: Annotated[
        int | None,
        typer.Option("--trials", metavar="N", help="Measure so many candidates in all."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", help="Search so long in all. [default: 10]"),
    ] = None,
    threads: Threads = None,
    cache: Annotated[
        str,
        typer.Option(
            "--cache",
            metavar="cold|warm",
            help="Where the weights are when a kernel begins: beyond the core's caches, as in a "
            "model, or in them.",
        ),
    ] = "cold",
    cost: Annotated[
        str,
        typer.Option(
            "--cost",
            metavar="latency|instructions",
            help="What to bring down: time, or the weighted instructions that an emulated board "
            "counts.",
        ),
    ] = "latency",
    space: Annotated[
        str,
        typer.Option(
            "--space",
            metavar="computed|stock",
            help="Which plans: those around the computed ones; or MetaSchedule's stock rules, to "
            "compare with, which compile never takes (needs the extra `stock`).",
        ),
    ] = "computed",
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    builders: Annotated[
        str | None,
        typer.Option(
            "--builders",
            metavar="N|tcp://HOST:PORT",
            help="Processes that build, by default one on each processor; or a Dask scheduler.",
            show_default=False,
        ),
    ] = None,
    logs: Logs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be tuned, and measure nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search for faster schedules than the computed ones, and record them.

    The budget counts for the search as a whole: whatever ended it, the same command goes on where
    it was and spends what is left. `compile` then uses the best records.
    """
    from tvm_mobilenet.tune import tune_model

    if cache not in ("cold", "warm"):
        raise UsageError(f"--cache {cache}: give cold or warm")
    if cost not in ("latency", "instructions"):
        raise UsageError(f"--cost {cost}: give latency or instructions")
    if space not in ("computed", "stock"):
        raise UsageError(f"--space {space}: give computed or stock")
    options = DeviceOptions(
        tracker=tracker,
        key=key,
        device=device,
        emulated=emulated,
        auth_key_file=auth_key_file,
        timeout_s=timeout_s,
    )
    processors = parse_cpus(cpus)
    with show_progress() as progress:
        spec = load_shown(target, progress)
        with resumable(), options.open(lambda: spec, progress) as where:
            found = tune_model(
                model,
                target=spec,
                trials=trials,
                minutes=minutes,
                threads=threads,
                cache="cold" if cache == "cold" else "warm",
                cost="latency" if cost == "latency" else "instructions",
                device=where,
                cpus=processors,
                builders=builders,
                logs=logs,
                space="stock" if space == "stock" else "computed",
                dry_run=dry_run,
                progress=progress,
            )
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)


def _print(found: TuningReport) -> None:
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    print_line(f"{found.model} for {found.target}, {threads}; times in {found.unit}")
    if found.space == "stock":
        print_line("MetaSchedule's stock rules, for comparison only: compile never takes these")
    print_table(
        ("kernel", "calls", "untuned", "best", "gain", "floor", "tried", "outcome"),
        [
            (
                task.name,
                task.calls,
                _figure(task.untuned),
                _figure(task.best),
                "" if task.ratio is None else f"{1 / task.ratio:.3f}x",
                _figure(task.floor or None),
                task.trials,
                _outcome(task),
            )
            for task in found.tasks
        ],
    )
    if found.left_as_computed:
        print_line(f"left as computed, no search changes it: {', '.join(found.left_as_computed)}")
    before = found.spent_before
    if found.is_dry_run:
        print_line(
            f"nothing was measured; spent before: {before['trials']:.0f} candidates in "
            f"{before['seconds']:.0f} s"
        )
        return
    untuned = f"{found.untuned:.3f} {found.unit} untuned, " if found.space != "stock" else ""
    unit = f" {found.unit}" if found.space == "stock" else ""
    print_line(
        f"all kernels: {untuned}{found.best:.3f}{unit} with the best plans; "
        f"{found.trials} candidates in {found.seconds:.0f} s: "
        f"{found.built_per_s:.1f} built and {found.candidates_per_s:.1f} measured a second"
    )
    if not found.trials:
        print_line("nothing is left of the budget; give a larger one to go on")
    print_line(f"log       {found.log}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _outcome(task: TaskReport) -> str:
    return f"{task.status} ({task.stopped})" if task.stopped else task.status
