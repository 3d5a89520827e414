"""`tvm-mobilenet explore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import (
    print_json,
    print_line,
    print_table,
    print_warning,
    resumable,
    show_progress,
)
from tvm_mobilenet.cli.device import DeviceOptions, parse_cpus
from tvm_mobilenet.cli.options import (
    AsJson,
    AuthKeyFile,
    BoardKey,
    Cpus,
    DeviceAddress,
    Emulated,
    Logs,
    NoLogs,
    Target,
    Threads,
    TimeoutS,
    TrackerAddress,
)
from tvm_mobilenet.cli.targets import load_shown
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.exploration.result import Exploration, Outcome


def explore(
    target: Target = "host",
    budget_ms: Annotated[
        float | None,
        typer.Option("--budget-ms", metavar="MS", help="What an inference may take."),
    ] = None,
    budget_minstr: Annotated[
        float | None,
        typer.Option(
            "--budget-minstr",
            metavar="N",
            help="What it may retire, in millions of instructions; with --emulated.",
        ),
    ] = None,
    budget_mb: Annotated[
        float | None,
        typer.Option("--budget-mb", metavar="MB", help="What the library may have."),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            "--families",
            metavar="LIST",
            help="Such as v2,v3 or mobilenet_v3_small. [default: all]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="LIST", help="float32, int8 or float32,int8.")
    ] = "float32",
    accuracy: Annotated[
        Path | None,
        typer.Option(
            "--accuracy",
            metavar="FILE.csv",
            help="Accuracies of your own, columns model,accuracy; by default the published ones.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="By default out/explore_TARGET; what was measured there is not measured again.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    no_logs: NoLogs = False,
    logs: Logs = None,
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Find the most accurate model that fits a budget, and what else one could take.

    Compiles and measures the models that could matter, and leaves out those that measured ones
    beat. After Ctrl-C the same command goes on where it was.
    """
    from tvm_mobilenet.exploration.explorer import explore as explore_models

    options = DeviceOptions(
        tracker=tracker,
        key=key,
        device=device,
        emulated=emulated,
        auth_key_file=auth_key_file,
        timeout_s=timeout_s,
    )
    options.check()
    _check_budget(emulated, budget_ms, budget_minstr)
    # What counts is a board of its own: `explore_models` starts it.
    where_options = options if not emulated else DeviceOptions.none()
    with show_progress() as progress:
        spec = load_shown(target, progress)
        with where_options.open(lambda: spec, progress) as where, resumable():
            found = explore_models(
                spec,
                budget_ms=budget_ms,
                budget_minstr=budget_minstr,
                budget_mb=budget_mb,
                families=_words(families),
                dtypes=_words(dtype) or ("float32",),
                accuracy=accuracy,
                out=output,
                threads=threads,
                cpus=parse_cpus(cpus),
                device=where,
                use_logs=not no_logs,
                logs=logs,
                progress=progress,
            )
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)


def _check_budget(emulated: bool, budget_ms: float | None, budget_minstr: float | None) -> None:
    if emulated and budget_ms is not None:
        raise UsageError(
            "--emulated --budget-ms: an emulated board's times mean nothing; give --budget-minstr"
        )
    if not emulated and budget_minstr is not None:
        raise UsageError(
            "--budget-minstr: only an emulated board counts instructions; add --emulated"
        )


def _words(text: str | None) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else None


def _print(found: Exploration) -> None:
    unit = found.budget.unit
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    print_line(f"{found.conditions.target} on {found.conditions.device}, {threads}")
    print_line(f"accuracy: {found.accuracy_source}")
    print_table(
        ("model", "top-1", "predicted", unit, "library", "memory", "front", "outcome"),
        [_row(outcome, found) for outcome in found.outcomes],
    )
    print_line("front: nothing measured is as accurate at no greater c(ost), s(ize), m(emory)")
    for note in found.notes:
        print_warning(note)
    if found.best is None:
        print_line(f"no model fits {found.budget}")
        return
    for word, one in (("best", found.best), ("runner-up", found.runner_up)):
        if one is not None:
            size = (one.probe.size_bytes or 0) / 1e6
            print_line(
                f"{word:<10}{one.candidate.name}: {one.candidate.accuracy:g} %, {one.cost:.3f} "
                f"{unit}, {size:.2f} MB"
            )
    name, target = found.best.candidate.model, found.conditions.target
    if found.best.candidate.dtype == "int8":
        print_line(f"quantize  tvm-mobilenet quantize {name} --calibration DIR -o {name}.onnx")
        print_line(f"compile   tvm-mobilenet compile {name}.onnx --target {target} -o DIR")
    else:
        print_line(
            f"compile   tvm-mobilenet compile {name} --weights FILE --target {target} -o DIR"
        )


def _row(outcome: Outcome, found: Exploration) -> tuple[object, ...]:
    probe = outcome.measured.probe if outcome.measured else None
    name = outcome.candidate.name
    fronts = zip("csm", (found.front, found.front_by_size, found.front_by_memory), strict=True)
    return (
        name,
        f"{outcome.candidate.accuracy:.1f}",
        "" if outcome.predicted is None else f"{outcome.predicted:.2f}",
        "" if probe is None or probe.cost is None else f"{probe.cost:.2f}",
        "" if probe is None or not probe.size_bytes else f"{probe.size_bytes / 1e6:.2f} MB",
        "" if probe is None or not probe.peak_bytes else f"{probe.peak_bytes / 1e6:.1f} MB",
        "".join(letter if name in front else "" for letter, front in fronts),
        f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status,
    )
