"""This machine as a device: models opened in this process, series timed in one of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm_mobilenet
from tvm_mobilenet import errors
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.compute_thread import resolve_threads
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.facts import HostFacts, host_facts
from tvm_mobilenet.series import Memory, Series, SeriesRequest, Steps

__all__ = ["LocalDevice"]


class LocalDevice:
    """The machine that this runs on."""

    name = "this machine"

    @property
    def machine(self) -> str:
        """What libraries must be for."""
        return host_machine()

    def facts(self) -> HostFacts:
        """Describe this machine."""
        return host_facts()

    def open(
        self, artifact: Artifact, threads: int | None = None, cpus: Sequence[int] = ()
    ) -> LocalExecutor:
        """Load an artifact's library into this process; see `LocalExecutor`."""
        return LocalExecutor(artifact, threads, cpus)

    def take_series(self, artifact: Artifact, request: SeriesRequest) -> Series:
        """Time a series in a fresh process.

        Nothing that the caller has loaded can then disturb the clock, the thread pools or the count
        of memory.
        """
        threads = resolve_threads(request.threads, request.cpus)
        host = host_facts()
        found = _probe(
            {
                "artifact": str(artifact.path),
                "threads": threads,
                "cpus": list(request.cpus),
                "warmup": request.warmup,
                "repeat": request.repeat,
                "profile": request.profile,
            }
        )
        rows = found["layer_times_ms"]
        steps = Steps(
            load_ms=found["load_ms"],
            first_run_ms=found["first_run_ms"],
            memory=Memory(
                found["before_bytes"],
                found["peak_bytes"],
                steps=tuple((step, now, peak) for step, now, peak in found["memory_steps"]),
            ),
            warmup_ms=tuple(found["warmup_ms"]),
            values_ms=tuple(found["values_ms"]),
            layer_times_ms=None if rows is None else tuple(tuple(row) for row in rows),
        )
        return Series(steps=steps, threads=threads, host=host, tvm=found["tvm"])


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
