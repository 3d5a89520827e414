"""A comparison as text for the terminal and as JSON for other programs.

docs/benchmarks.md describes the JSON field by field; a field that changes its meaning changes
`format_version`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import Comparison, Entry, cpu_name, numbers_of, warnings_of
from tvm_mobilenet.files import new_file

__all__ = ["FORMAT_VERSION", "describe", "render", "write_json"]

FORMAT_VERSION = 2
"""1: float32 alone. 2: `dtype` in each result; the quantization steps of int8; `threads`,
`agrees` and `remark` of each engine."""


def render(comparison: Comparison) -> str:
    """Return the table of one model at one thread count."""
    threads = comparison.threads
    noun = "thread" if threads == 1 else "threads"
    rounds = len(comparison.measured[0].turns) if comparison.measured else 0
    floor = ""
    if comparison.peak_gflops is not None:
        floor_ms = 2 * comparison.macs / comparison.peak_gflops / 1e6
        floor = f"; peak {comparison.peak_gflops:.0f} GFLOP/s, floor {floor_ms:.3f} ms"
    int8 = comparison.dtype == "int8"
    parity = f"{'steps':>7}{'max':>5}{'top-1':>7}" if int8 else f"{'of peak':>9}{'rel. L2':>10}"
    lines = [
        f"{comparison.model}, {comparison.dtype}, batch 1, {threads} {noun}, {rounds} rounds, "
        f"{comparison.macs / 1e6:.1f} M multiply-adds",
        f"{cpu_name()}, {os.cpu_count()} processors{floor}",
        f"{'engine':<14}{'version':<16}{'median ms':>10}{'min':>9}{'p90':>9}{'ratio':>8}"
        f"{'GOP/s' if int8 else 'GFLOP/s':>9}{parity}",
    ]
    lines += [_row(entry, comparison) for entry in comparison.entries]
    lines += [f"  note: {note}" for note in warnings_of(comparison)]
    return "\n".join(lines) + "\n"


def _row(entry: Entry, comparison: Comparison) -> str:
    version = entry.loaded.version if entry.loaded else ""
    if entry.absence:
        return f"{entry.engine:<14}{version:<16}absent: {entry.absence}"
    numbers = numbers_of(entry, comparison)
    line = (
        f"{entry.engine:<14}{version:<16}{numbers['median_ms']:>10.3f}{numbers['min_ms']:>9.3f}"
        f"{numbers['p90_ms']:>9.3f}{_blank(numbers['ratio'], '8.3f')}{numbers['gflops']:>9.1f}"
    )
    found = entry.agreement
    assert found is not None  # what was timed was judged before
    if found.steps_mean is not None:
        top1 = "same" if found.top1 else "other"
        return f"{line}{found.steps_mean:>7.1f}{found.steps_max:>5.0f}{top1:>7}"
    return f"{line}{_blank(numbers['share_of_peak'], '9.0%')}{found.relative_l2:>10.0e}"


def _blank(value: float | None, form: str) -> str:
    """Format a number, and what there is none of as blanks of the same width."""
    return f"{'':{form.partition('.')[0]}}" if value is None else f"{value:>{form}}"


def write_json(
    path: Path, comparisons: Sequence[Comparison], dtype: str, invocation: Sequence[str]
) -> None:
    """Write all comparisons of a run to `path`, which appears whole or not at all."""
    text = json.dumps(describe(comparisons, dtype, invocation), indent=2, allow_nan=False)
    with new_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def describe(
    comparisons: Sequence[Comparison], dtype: str, invocation: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the JSON document of a run."""
    return {
        "format_version": FORMAT_VERSION,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": ["benchmarks/compare.py", *invocation],
        "cpu": cpu_name(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "dtype": dtype,
        "batch": 1,
        "results": [_result(c) for c in comparisons],
    }


def _result(comparison: Comparison) -> dict[str, Any]:
    best = comparison.fastest_peer
    return {
        "model": comparison.model,
        "dtype": comparison.dtype,
        "threads": comparison.threads,
        "macs": comparison.macs,
        "peak_gflops": comparison.peak_gflops,
        "fastest_peer": best.engine if best else None,
        "stolen_share": comparison.stolen,
        "warnings": warnings_of(comparison),
        "engines": [_engine(entry, comparison) for entry in comparison.entries],
    }


def _engine(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    result: dict[str, Any] = {
        "engine": entry.engine,
        "threads": entry.threads,
        "absence": entry.absence or None,
    }
    if entry.loaded:
        result |= {
            "version": entry.loaded.version,
            "settings": entry.loaded.note,
            "load_ms": entry.loaded.load_ms,
        }
    if found := entry.agreement:
        result |= {
            "agrees": not (found.failure or found.remark),
            "remark": found.remark or None,
            "relative_l2": found.relative_l2 if np.isfinite(found.relative_l2) else None,
            "steps_mean": found.steps_mean,
            "steps_max": found.steps_max,
            "top1_agrees": found.top1,
        }
    if entry.turns:
        result |= numbers_of(entry, comparison)
        result |= {
            "round_medians_ms": entry.series.round_medians_ms,
            "inferences": sum(map(len, entry.turns)),
            "linger_ms": float(np.median(entry.linger_ms)),
        }
    return result
