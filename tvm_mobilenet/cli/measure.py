"""`tvm-mobilenet measure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Threads,
    TimeoutS,
    TrackerAddress,
)
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.measure import Measurement
    from tvm_mobilenet.profile import Profile
    from tvm_mobilenet.series import BoardRecord


def measure(
    artifact: ArtifactDir,
    threads: Threads = None,
    repeat: Annotated[
        int | None,
        typer.Option("--repeat", metavar="N", help="Inferences that count. [default: 100]"),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option("--warmup", metavar="N", help="Inferences before. [default: 20]"),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time every layer, against the machine's peak.")
    ] = False,
    tracker: TrackerAddress = None,
    key: BoardKey = None,
    device: DeviceAddress = None,
    emulated: Emulated = False,
    auth_key_file: AuthKeyFile = None,
    timeout_s: TimeoutS = None,
    cpus: Cpus = None,
    cool_down_s: Annotated[
        float | None,
        typer.Option(
            "--cool-down-s",
            metavar="S",
            help="Rest between bursts on a board. [default: 1, emulated 0]",
            show_default=False,
        ),
    ] = None,
    count_instructions: Annotated[
        bool,
        typer.Option(
            "--count-instructions",
            help="Count instead of timing; needs --emulated, and one thread.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Time a compiled model, here or on a board, and what it needs.

    Here it runs in a process of its own. The number of threads is set, and kept with the figures.
    """
    from tvm_mobilenet.measure import DEFAULT_REPEAT, DEFAULT_WARMUP
    from tvm_mobilenet.measure import measure as measure_artifact

    options = DeviceOptions(
        tracker=tracker,
        key=key,
        device=device,
        emulated=emulated,
        auth_key_file=auth_key_file,
        timeout_s=timeout_s,
    )
    if count_instructions:
        _count(artifact, options, threads, (repeat, warmup, cpus, cool_down_s), profile, as_json)
        return
    processors = parse_cpus(cpus)
    with (
        show_progress() as progress,
        options.open(lambda: artifact_target(artifact), progress) as where,
    ):
        progress.start("measuring")
        found = measure_artifact(
            artifact,
            threads=threads,
            warmup=DEFAULT_WARMUP if warmup is None else warmup,
            repeat=DEFAULT_REPEAT if repeat is None else repeat,
            profile=profile,
            device=where,
            cpus=processors,
            cool_down_s=cool_down_s,
        )
        progress.done()
    for warning in found.warnings:
        print_warning(warning)
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)
    if found.profile:
        _print_profile(found.profile)


def _count(
    artifact: Path,
    options: DeviceOptions,
    threads: int | None,
    of_timing: tuple[object, ...],
    profile: bool,
    as_json: bool,
) -> None:
    """Count instructions in place of timing."""
    options.check()
    if not options.emulated:
        raise UsageError("--count-instructions: only an emulated board counts; add --emulated")
    if threads not in (None, 1):
        raise UsageError(
            f"--threads {threads}: threads that wait for each other spin, and how long is chance; "
            "instructions are counted with --threads 1"
        )
    if profile or any(value is not None for value in of_timing):
        raise UsageError(
            "--count-instructions takes no option of timing (--repeat, --warmup, --profile, "
            "--cpus, --cool-down-s); layers are counted anyway"
        )
    from tvm_mobilenet.artifact import open_artifact
    from tvm_mobilenet.boards.emulator import ensure_board
    from tvm_mobilenet.cli.counts import print_counts
    from tvm_mobilenet.count import count_instructions

    opened = open_artifact(artifact, runnable=False)
    with show_progress() as progress:
        progress.start("counting instructions")
        with ensure_board(artifact_target(artifact)) as board:
            found = count_instructions(opened, board)
        progress.done()
    if as_json:
        print_json(found.to_dict())
    else:
        print_counts(found)


def _print(found: Measurement) -> None:
    timing = found.timing
    where = f", {found.board.name}" if found.board else ""
    print_line(f"{found.model} for {found.target}, on {found.host.cpu}{where}")
    if found.is_random:
        print_line("weights are random: the time counts, the output means nothing")
    print_table(
        ("threads", "median", "min", "p90", "p99", "load", "first run", "memory"),
        [
            (
                found.threads,
                *(
                    f"{value:.3f} ms"
                    for value in (
                        timing.median_ms,
                        timing.min_ms,
                        timing.percentile_ms(90),
                        timing.percentile_ms(99),
                    )
                ),
                f"{found.load_ms:.1f} ms",
                f"{found.first_run_ms:.1f} ms",
                _memory(found),
            )
        ],
    )
    print_line(f"{len(timing.values_ms)} inferences after {len(timing.warmup_ms)} to warm up")
    if found.board:
        _print_board(found.board)


def _print_board(board: BoardRecord) -> None:
    cpus = f"processors {','.join(map(str, board.cpus))}" if board.cpus else "processors not known"
    print_line(f"{cpus}; {board.cool_down_s:g} s of rest between bursts")
    if board.before is None or board.after is None:
        return
    print_table(
        ("", "clock", "governor", "temperature", "free memory"),
        [
            (
                word,
                f"{facts.clock_mhz:.0f} MHz" if facts.clock_mhz else "not known",
                ", ".join(facts.governors) or "not known",
                "not known" if facts.temperature_c is None else f"{facts.temperature_c:.0f} C",
                "" if facts.memory_free_mib is None else f"{facts.memory_free_mib:.0f} MiB",
            )
            for word, facts in (("before", board.before), ("after", board.after))
        ],
    )


def _memory(found: Measurement) -> str:
    memory = found.memory
    if memory is None:
        return "not known"
    return f"{memory.added_bytes / 1e6:.1f} MB of {memory.peak_bytes / 1e6:.0f}"


def _print_profile(profile: Profile) -> None:
    print_line("")
    print_table(
        ("layer", "family", "kernel", "tensor", "time", "share", "GFLOP/s", "of peak", "GB/s"),
        [
            (
                layer.index,
                layer.family,
                layer.kernel,
                layer.tensor,
                f"{1e3 * layer.median_ms:.1f} us",
                f"{100 * layer.share:.1f} %",
                "" if layer.gflops is None else f"{layer.gflops:.1f}",
                _share(layer.share_of_peak),
                f"{layer.gbytes_per_s:.1f}",
            )
            for layer in profile.layers
        ],
    )
    whole = f"whole: {profile.whole_ms:.3f} ms, {profile.gflops:.1f} GFLOP/s"
    if profile.peak:
        whole += f", {_share(profile.share_of_peak)} of the peak of {profile.peak.gflops:.0f}"
    print_line(f"{whole}; layers alone: {profile.sum_ms:.3f} ms")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
