"""The process that `measure` starts: opens an artifact, times it, and answers in one line of JSON.

Run as `python -m tvm_mobilenet.probe REQUEST`; not a command for people.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.series import SeriesRequest, take_steps


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
    cpus = tuple(request.get("cpus", ()))
    wanted = SeriesRequest(
        threads=request["threads"],
        cpus=cpus,
        warmup=request["warmup"],
        repeat=request["repeat"],
        profile=request["profile"],
    )
    with LocalExecutor(artifact, wanted.threads, cpus) as executor:
        steps = take_steps(executor, inputs, wanted)
    memory = steps.memory
    return {
        "tvm": str(tvm.__version__),
        "load_ms": steps.load_ms,
        "first_run_ms": steps.first_run_ms,
        "before_bytes": memory.before_bytes if memory else 0,
        "peak_bytes": memory.peak_bytes if memory else 0,
        "memory_steps": memory.steps if memory else (),
        "warmup_ms": steps.warmup_ms,
        "values_ms": steps.values_ms,
        "layer_times_ms": steps.layer_times_ms,
    }


if __name__ == "__main__":
    main(sys.argv[1])
