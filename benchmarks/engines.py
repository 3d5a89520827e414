"""All engines by name, ours among them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.engine import Engine, Job, R
from benchmarks.peak_kernel import Peak
from benchmarks.peers import PEERS
from tvm_mobilenet import __version__
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.compute_thread import ComputeThread

__all__ = ["ENGINES", "OURS", "PEAK", "silence_stdout"]


class Ours:
    """A library that this project compiled, run by TVM's virtual machine."""

    version = __version__

    def __init__(self, job: Job) -> None:
        if job.artifact is None:
            raise EngineUnavailableError("nothing compiled; leave out --ours to compile it")
        artifact = open_artifact(job.artifact)
        self._outputs = artifact.manifest.outputs
        # TVM takes half of an x86 machine's processors, and pins the calling thread, unless it is
        # told otherwise before its first call: the product does that on a thread of its own.
        self._thread = ComputeThread(job.threads)
        self._thread.call(self._load, artifact, job.inputs)

    def _load(self, artifact: Artifact, inputs: dict[str, np.ndarray]) -> None:
        import tvm
        from tvm import relax

        self.note = f"TVM {tvm.__version__}, {artifact.manifest.schedule.tuned} layers tuned"
        library = tvm.runtime.load_module(str(artifact.library_path))
        self._vm = relax.VirtualMachine(library, tvm.cpu())
        arrays = []
        for info in artifact.manifest.inputs:
            array = inputs[info.name]
            if info.layout == "NHWC":
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            arrays.append(tvm.runtime.tensor(array))
        self._vm.set_input("main", *arrays)

    def refill(self) -> None:
        pass

    def infer(self) -> None:
        self._vm.invoke_stateful("main")

    def outputs(self) -> list[np.ndarray]:
        result = self._vm.get_outputs("main")
        tensors = [result] if len(self._outputs) == 1 else list(result)
        arrays = [t.numpy() for t in tensors]
        return [
            a.transpose(0, 3, 1, 2) if info.layout == "NHWC" else a
            for a, info in zip(arrays, self._outputs, strict=True)
        ]

    def on_its_thread(self, function: Callable[[], R]) -> R:
        return self._thread.call(function)


OURS = "tvm-mobilenet"
PEAK = "peak"
ENGINES: dict[str, Callable[[Job], Engine]] = {**PEERS, OURS: Ours, PEAK: Peak}


def silence_stdout() -> None:
    """Send what engines print to standard output (MNN does) to standard error."""
    sys.stdout.flush()
    os.dup2(2, 1)
