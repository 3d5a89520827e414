"""The process that `measure` starts: opens an artifact, times it, and answers in one line of JSON.

Run as `python -m tvm_mobilenet.probe REQUEST`; not a command for people.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded

_STATUS = Path("/proc/self/status")
_PROFILE_RUNS = 50


def main(request_json: str) -> None:
    """Do what is asked and print the answer, an error included."""
    try:
        answer = _probe(json.loads(request_json))
    except TvmMobilenetError as err:
        answer = {"error": type(err).__name__, "message": str(err)}
    print(json.dumps(answer))


def _probe(request: Mapping[str, Any]) -> dict[str, Any]:
    # tvm_ffi imports torch where there is one, only to trade tensors with it: three seconds and
    # 200 MB that a library does not need.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import tvm
    import tvm.runtime.vm  # here, so that it is not counted as the model's

    artifact = open_artifact(request["artifact"])
    (inputs,) = seeded(artifact.manifest, 1)
    before = _resident_bytes()
    _reset_peak()
    with LocalExecutor(artifact, request["threads"]) as executor:
        begin = time.perf_counter()
        executor.run(inputs)
        answer: dict[str, Any] = {
            "tvm": str(tvm.__version__),
            "load_ms": executor.load_ms,
            "first_run_ms": (time.perf_counter() - begin) * 1e3,
            "before_bytes": before,
            "peak_bytes": max(before, _peak_bytes()),
            "layer_times_ms": None,
        }
        warmup, repeat = request["warmup"], request["repeat"]
        values = executor.times_ms(inputs, warmup + repeat)
        answer |= {"warmup_ms": values[:warmup], "values_ms": values[warmup:]}
        if request["profile"]:
            runs = min(repeat, _PROFILE_RUNS)
            executor.layer_times_ms(inputs, max(1, min(warmup, runs)))
            answer["layer_times_ms"] = executor.layer_times_ms(inputs, runs).tolist()
    return answer


def _reset_peak() -> None:
    # Makes VmHWM start again from what is resident now (proc(5), clear_refs). Where that is not
    # allowed the peak is that of the whole process, start-up included.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident_bytes() -> int:
    return _status_bytes("VmRSS:") or _rusage_bytes()


def _peak_bytes() -> int:
    return _status_bytes("VmHWM:") or _rusage_bytes()


def _status_bytes(key: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(key)), None)
    return int(found) * 1024 if found else None


def _rusage_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1])
