"""What a comparison is once it is measured: records, and what follows from them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import Agreement
from benchmarks.engines import OURS
from benchmarks.series import Series, fastest, paired_ratio
from benchmarks.workers import Loaded

__all__ = ["Comparison", "Entry", "cpu_name", "numbers_of", "warnings_of"]


@dataclass(slots=True)
class Entry:
    """One line of the table: an engine at one thread count, on one model."""

    engine: str
    threads: int
    loaded: Loaded | None = None
    absence: str = ""
    agreement: Agreement | None = None
    turns: list[tuple[float, ...]] = field(default_factory=list)
    idle_cpu_ms: list[float] = field(default_factory=list)
    linger_ms: list[float] = field(default_factory=list)

    @property
    def series(self) -> Series:
        """Its turns so far."""
        return Series(tuple(self.turns))


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines of one model at one thread count."""

    model: str
    dtype: str
    threads: int
    macs: int
    entries: tuple[Entry, ...]
    peak_gflops: float | None
    """What this many cores can do at all in float32, measured in the same rounds."""
    stolen: float
    """Share of the processors' time that the hypervisor gave to others meanwhile."""

    @property
    def measured(self) -> list[Entry]:
        """The lines that have figures."""
        return [e for e in self.entries if e.turns]

    @property
    def fastest_peer(self) -> Entry | None:
        """The measured engine, ours apart, that is closest to each round's best peer."""
        peers = [e for e in self.measured if e.engine != OURS]
        best = fastest([e.series for e in peers])
        return peers[best] if peers else None


def numbers_of(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    """Return what the table says of one engine, as plain numbers."""
    series, best = entry.series, comparison.fastest_peer
    gflops = 2 * comparison.macs / series.median_ms / 1e6
    peak = comparison.peak_gflops
    return {
        "median_ms": series.median_ms,
        "min_ms": series.min_ms,
        "p90_ms": series.p90_ms,
        "spread": series.spread,
        "ratio": paired_ratio(series, best.series) if best else None,
        "gflops": gflops,
        "share_of_peak": gflops / peak if peak else None,
    }


def warnings_of(comparison: Comparison) -> list[str]:
    """Return what a reader should know before trusting the figures."""
    notes = [
        f"{e.engine}: {e.agreement.remark}"
        for e in comparison.measured
        if e.agreement and e.agreement.remark
    ]
    if noisy := _names_and_spreads([e for e in comparison.measured if e.series.is_noisy]):
        notes.append(f"noisy, rounds differ by (interquartile range over median): {noisy}")
    if comparison.stolen > 0.01:
        notes.append(f"the hypervisor kept {comparison.stolen:.1%} of the processors' time")
    cores = os.cpu_count() or 1
    if comparison.threads > cores:
        notes.append(f"{comparison.threads} threads on {cores} processors")
    for entry in comparison.measured:
        if (idle := float(np.median(entry.idle_cpu_ms[1:] or [0.0]))) > 2.0:
            notes.append(f"{entry.engine} used {idle:.0f} ms of CPU time between its turns")
    return notes


def _names_and_spreads(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{e.engine} {e.series.spread:.0%}" for e in entries)


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
