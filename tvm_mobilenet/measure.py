"""How long an inference takes, and what it needs: timed in a process of its own.

Nothing that the caller has loaded can then disturb the clock, the thread pools or the count of
memory. What a figure was taken with (threads, library, machine, date) is kept beside it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tvm_mobilenet
from tvm_mobilenet import errors
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.compute_thread import resolve_threads
from tvm_mobilenet.errors import SpecError, TvmMobilenetError
from tvm_mobilenet.profile import Profile, profile_from

__all__ = ["HostFacts", "Measurement", "Memory", "Timing", "host_facts", "measure"]

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the process that measured."""

    before_bytes: int
    """With Python, numpy and TVM's runtime loaded, the model not yet."""
    peak_bytes: int
    """The most there was from then on to the end of the inferences."""

    @property
    def added_bytes(self) -> int:
        """What loading and running the model took."""
        return self.peak_bytes - self.before_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "added_bytes": self.added_bytes}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The machine that measured."""

    cpu: str
    machine: str
    """`x86_64`, `aarch64`, ..."""
    cpus: int
    """Processors that the process may run on."""
    governor: str | None
    """How the clock is chosen; None where the machine does not say."""
    load_average: float
    """Of the last minute, before the measurement began."""
    system: str
    """Kernel and its version."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


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
    memory: Memory
    host: HostFacts
    date: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    """Of what measured: `tvm_mobilenet`, `tvm`."""
    profile: Profile | None = None
    """Where it was asked for."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures doubtful, in words."""
        return self.timing.warnings

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
            "memory": self.memory.to_dict(),
            "host": self.host.to_dict(),
            "date": self.date,
            "versions": dict(self.versions),
            "profile": self.profile.to_dict() if self.profile else None,
            "warnings": list(self.warnings),
        }


def measure(
    path: Path | str,
    *,
    threads: int | None = None,
    warmup: int = DEFAULT_WARMUP,
    repeat: int = DEFAULT_REPEAT,
    profile: bool = False,
) -> Measurement:
    """Time an artifact on this machine.

    Args:
        path: the artifact folder.
        threads: how many threads compute; None for one on each fast core.
        warmup: inferences before it counts.
        repeat: inferences that count.
        profile: time every layer too, and the machine's peak to set it against.

    Raises:
        ArtifactError: the artifact is damaged or for another machine.
        SpecError: a number out of range.
    """
    artifact = open_artifact(path)
    for name, value, least in (("warmup", warmup, 0), ("repeat", repeat, 1)):
        if value < least:
            raise SpecError(f"{name} {value}: give {least} or more")
    threads = resolve_threads(threads)
    host = host_facts()
    found = _probe(
        {
            "artifact": str(artifact.path),
            "threads": threads,
            "warmup": warmup,
            "repeat": repeat,
            "profile": profile,
        }
    )
    return _measurement(artifact, str(path), threads, host, found)


def _measurement(
    artifact: Artifact, path: str, threads: int, host: HostFacts, found: Mapping[str, Any]
) -> Measurement:
    manifest = artifact.manifest
    times = found["layer_times_ms"]
    timing = Timing(tuple(found["warmup_ms"]), tuple(found["values_ms"]))
    return Measurement(
        artifact=path,
        model=manifest.model.name,
        is_random=manifest.model.is_random,
        target=manifest.target.name,
        library_sha256=manifest.library.sha256,
        library_bytes=manifest.library.size_bytes,
        threads=threads,
        timing=timing,
        load_ms=found["load_ms"],
        first_run_ms=found["first_run_ms"],
        memory=Memory(found["before_bytes"], found["peak_bytes"]),
        host=host,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={"tvm_mobilenet": tvm_mobilenet.__version__, "tvm": found["tvm"]},
        profile=profile_from(manifest, times, timing.median_ms, threads) if times else None,
    )


def _probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run `tvm_mobilenet.probe` in a fresh interpreter and return what it found."""
    package = str(Path(tvm_mobilenet.__file__).parent.parent)
    search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        # TVM's runtime is all that a library needs; its compiler would be in the count of memory.
        "TVM_USE_RUNTIME_LIB": "1",
    }
    command = [sys.executable, "-m", "tvm_mobilenet.probe", json.dumps(request)]
    done = _run(command, environment)
    lines = done.stdout.strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError) as err:
        raise TvmMobilenetError(f"measuring {request['artifact']}: {_last_words(done)}") from err
    if "error" in answer:
        kind = getattr(errors, answer["error"], TvmMobilenetError)
        raise kind(answer["message"])
    return answer


def _run(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    # `run` kills the process and waits for it when Ctrl-C ends the wait.
    return subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False
    )


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the process that measures was ended by {name}; is the library for this processor?"
    lines = done.stderr.strip().splitlines()
    return f"the process that measures failed: {lines[-1] if lines else done.returncode}"


def host_facts() -> HostFacts:
    """Describe this machine."""
    return HostFacts(
        cpu=_cpu_name(),
        machine=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()}",
    )


def _cpu_name() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or "unknown"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
