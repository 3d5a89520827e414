"""Running candidates on this machine's OpenCL device, in a worker process.

Right result first, then the time, by the device's profiling events.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import tvm
from tvm_mobilenet.opencl.placement import OpenCLPlacement
from tvm_mobilenet.tuning.kernels import calls
from tvm_mobilenet.tuning.measuring import Kernel, LocalKernels, load_library
from tvm_mobilenet.tuning.records import plan_from

__all__ = ["OpenCLKernels"]

_MOST_COPIES = 8


class OpenCLKernels(LocalKernels):
    """Answers the requests that `LocalKernels` does, on an OpenCL device.

    Args:
        seed: of the operands.
        cold_bytes: as of `LocalKernels`.
        index: which device.
    """

    def __init__(self, *, seed: int, cold_bytes: int, index: int = 0) -> None:
        super().__init__(seed=seed, cold_bytes=cold_bytes)
        self._placement = OpenCLPlacement(index)

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if request["op"] == "describe":
            return {"device": self._placement.name}
        self._prepare(request["workload"])
        return self._measure(request) if request["op"] == "measure" else self._contest(request)

    def _load(self, entry: Mapping[str, Any]) -> Kernel:
        plan = plan_from(entry["plan"])
        library = load_library(base64.b64decode(entry["library"]))
        self._placement.prepare(library)
        device = self._placement.device()
        (call,) = calls(self._workload, plan, self._operands)
        arrays = [array for array in call.inputs if array is not None]
        output = tvm.runtime.tensor(np.full(call.shape, np.nan, np.float32), device)
        weight_bytes = sum(arrays[index].nbytes for index in call.weights)
        copies = 1
        if weight_bytes and self._cold_bytes:
            copies = max(2, min(_MOST_COPIES, math.ceil(self._cold_bytes / weight_bytes)))
        placed = [tvm.runtime.tensor(np.ascontiguousarray(array), device) for array in arrays]
        function = library[call.symbol]
        variants = []
        for _ in range(copies):
            arguments = [
                tvm.runtime.tensor(np.ascontiguousarray(array), device)
                if index in call.weights
                else placed[index]
                for index, array in enumerate(arrays)
            ]
            variants.append([_bind(function, [*arguments, output])])
        return _TimedByEvents(variants, [output], placement=self._placement)


def _bind(function: Any, arguments: Sequence[Any]) -> Callable[[], Any]:
    return lambda: function(*arguments)


@dataclass
class _TimedByEvents(Kernel):
    placement: OpenCLPlacement | None = None

    def _timed(self) -> float:
        assert self.placement is not None
        return self.placement.time_ns(self._batch) / self.batch

    def _batch(self) -> None:
        for _ in range(self.batch):
            self._run()
