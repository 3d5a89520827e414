"""How long an inference takes, and what it needs, on this machine or on a board.

What a figure was taken with (threads, library, machine, date) is kept beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tvm_mobilenet
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.facts import HostFacts, host_facts
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.profile import NominalPeak, Profile, profile_from
from tvm_mobilenet.protocols import Device
from tvm_mobilenet.series import BoardRecord, Memory, Series, SeriesRequest

__all__ = ["HostFacts", "Measurement", "Memory", "Timing", "host_facts", "measure"]

DEFAULT_WARMUP = 20
DEFAULT_REPEAT = 100

# pyperf's rules for a benchmark that is not to be trusted (pyperf/_cli.py, format_checks).
_MAX_STDEV_SHARE = 0.10
_MAX_EXTREME_SHARE = 0.50
_MIN_RESOLVED_MS = 0.02
"""The loop around an inference adds up to a microsecond: five percent of this."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One series of inferences, every value kept."""

    warmup_ms: tuple[float, ...]
    """The values before it counts, in order."""
    values_ms: tuple[float, ...]
    """The values that count, in order."""

    @property
    def min_ms(self) -> float:
        """The fastest."""
        return min(self.values_ms)

    @property
    def max_ms(self) -> float:
        """The slowest."""
        return max(self.values_ms)

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean."""
        return float(np.mean(self.values_ms))

    @property
    def stdev_ms(self) -> float:
        """The sample standard deviation; 0 for a single value."""
        return float(np.std(self.values_ms, ddof=1)) if len(self.values_ms) > 1 else 0.0

    @property
    def median_ms(self) -> float:
        """The median: the figure to quote."""
        return self.percentile_ms(50)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile, interpolated between neighbours."""
        return float(np.percentile(self.values_ms, percent))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful, in words; empty where nothing does.

        Noisy is, as in pyperf, a standard deviation of at least a tenth of the mean, or an extreme
        at least half off it.
        """
        found = []
        mean, stdev = self.mean_ms, self.stdev_ms
        if stdev >= _MAX_STDEV_SHARE * mean:
            found.append(f"noisy: the standard deviation is {stdev / mean:.0%} of the mean")
        for word, value in (("slowest", self.max_ms), ("fastest", self.min_ms)):
            if abs(value - mean) >= _MAX_EXTREME_SHARE * mean:
                found.append(f"noisy: the {word} run is {(value - mean) / mean:+.0%} off the mean")
        if found:
            found[-1] += "; let the machine rest, close what else computes, or raise --repeat"
        if self.median_ms < _MIN_RESOLVED_MS:
            found.append("short: the loop around an inference is a visible part of the figures")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "min_ms": self.min_ms,
            "median_ms": self.median_ms,
            "p90_ms": self.percentile_ms(90),
            "p99_ms": self.percentile_ms(99),
            "max_ms": self.max_ms,
            "mean_ms": self.mean_ms,
            "stdev_ms": self.stdev_ms,
            "warnings": list(self.warnings),
            "warmup_ms": list(self.warmup_ms),
            "values_ms": list(self.values_ms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One artifact measured once."""

    artifact: str
    """Path of the folder."""
    model: str
    is_random: bool
    target: str
    library_sha256: str
    library_bytes: int
    threads: int
    timing: Timing
    load_ms: float
    """From opening the library to being ready; the file was read before, for its hash."""
    first_run_ms: float
    """The very first inference."""
    memory: Memory | None
    """None where the board cannot say: a stock RPC server."""
    host: HostFacts
    """The machine that measured: this one, or the board."""
    date: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    """Of what measured: `tvm_mobilenet`, `tvm`."""
    profile: Profile | None = None
    """Where it was asked for."""
    board: BoardRecord | None = None
    """The board that measured; None for this machine."""
    device_warnings: tuple[str, ...] = ()
    """What about the device makes the figures doubtful."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful, in words."""
        return (*self.device_warnings, *self.timing.warnings)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "artifact": self.artifact,
            "model": self.model,
            "is_random": self.is_random,
            "target": self.target,
            "library_sha256": self.library_sha256,
            "library_bytes": self.library_bytes,
            "threads": self.threads,
            "timing": self.timing.to_dict(),
            "load_ms": self.load_ms,
            "first_run_ms": self.first_run_ms,
            "memory": self.memory.to_dict() if self.memory else None,
            "host": self.host.to_dict(),
            "date": self.date,
            "versions": dict(self.versions),
            "profile": self.profile.to_dict() if self.profile else None,
            "board": self.board.to_dict() if self.board else None,
            "warnings": list(self.warnings),
        }


def measure(
    path: Path | str,
    *,
    threads: int | None = None,
    warmup: int = DEFAULT_WARMUP,
    repeat: int = DEFAULT_REPEAT,
    profile: bool = False,
    device: Device | None = None,
    cpus: Sequence[int] = (),
    cool_down_s: float | None = None,
) -> Measurement:
    """Time an artifact on a device.

    Args:
        path: the artifact folder.
        threads: how many threads compute; None for one on each of `cpus`, or each fast core.
        warmup: inferences before it counts.
        repeat: inferences that count.
        profile: time every layer too, against the machine's peak: measured on this machine, on a
            board computed from its target's figures.
        device: where to run it; None for this machine, in a process of its own.
        cpus: the processors to compute on; empty for the device's choice.
        cool_down_s: rest between bursts of inferences on a board, in seconds; None for its default.

    Raises:
        ArtifactError: the artifact is damaged or for another machine.
        SpecError: a number out of range.
        DeviceError: the board cannot be reached, or has gone in the middle.
    """
    device = device or LocalDevice()
    artifact = open_artifact(path, machine=device.machine, runnable=device.machine is not None)
    for name, value, least in (("warmup", warmup, 0), ("repeat", repeat, 1)):
        if value < least:
            raise SpecError(f"{name} {value}: give {least} or more")
    if cool_down_s is not None and not cool_down_s >= 0:
        raise SpecError(f"cool-down-s {cool_down_s:g}: give 0 or more seconds")
    series = device.take_series(
        artifact,
        SeriesRequest(
            threads=threads,
            cpus=tuple(cpus),
            warmup=warmup,
            repeat=repeat,
            profile=profile,
            cool_down_s=cool_down_s,
        ),
    )
    return _measurement(artifact, str(path), series)


def _measurement(artifact: Artifact, path: str, series: Series) -> Measurement:
    manifest, steps, board = artifact.manifest, series.steps, series.board
    timing = Timing(steps.warmup_ms, steps.values_ms)
    profile = None
    if steps.layer_times_ms is not None:
        profile = profile_from(
            manifest,
            steps.layer_times_ms,
            timing.median_ms,
            series.threads,
            nominal=NominalPeak.of(board) if board else None,
        )
    return Measurement(
        artifact=path,
        model=manifest.model.name,
        is_random=manifest.model.is_random,
        target=manifest.target.name,
        library_sha256=manifest.library.sha256,
        library_bytes=manifest.library.size_bytes,
        threads=series.threads,
        timing=timing,
        load_ms=steps.load_ms,
        first_run_ms=steps.first_run_ms,
        memory=steps.memory,
        host=series.host,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"tvm_mobilenet": tvm_mobilenet.__version__, "tvm": series.tvm},
        profile=profile,
        board=board,
        device_warnings=series.warnings,
    )
