"""`tvm-mobilenet measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tvm_mobilenet.cli.console import (
    print_json,
    print_line,
    print_table,
    print_warning,
    show_progress,
)
from tvm_mobilenet.cli.options import ArtifactDir, AsJson, Threads

if TYPE_CHECKING:
    from tvm_mobilenet.measure import Measurement
    from tvm_mobilenet.profile import Profile


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
    as_json: AsJson = False,
) -> None:
    """Time a compiled model on this machine, and what it needs.

    It runs in a process of its own. The number of threads is set, and kept with the figures.
    """
    from tvm_mobilenet.measure import DEFAULT_REPEAT, DEFAULT_WARMUP
    from tvm_mobilenet.measure import measure as measure_artifact

    with show_progress() as progress:
        progress.start("measuring")
        found = measure_artifact(
            artifact,
            threads=threads,
            warmup=DEFAULT_WARMUP if warmup is None else warmup,
            repeat=DEFAULT_REPEAT if repeat is None else repeat,
            profile=profile,
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


def _print(found: Measurement) -> None:
    timing = found.timing
    print_line(f"{found.model} for {found.target}, on {found.host.cpu}")
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
