"""Running candidates on this machine: right result first, then its time. In a worker process."""

from __future__ import annotations

import base64
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import tvm
from tvm_mobilenet.compute_thread import ComputeThread
from tvm_mobilenet.schedule.workload import TunableWorkload
from tvm_mobilenet.tuning.kernels import calls
from tvm_mobilenet.tuning.operands import Array, Operands
from tvm_mobilenet.tuning.records import canonical, plan_from, workload_from
from tvm_mobilenet.tuning.reference import largest_error, make_operands, reference, spoilt
from tvm_mobilenet.tuning.statistics import is_tight, typical
from tvm_mobilenet.tuning.stock_call import stock_call
from tvm_mobilenet.tuning.stock_plan import StockPlan
from tvm_mobilenet.tuning.timing import (
    BATCH_NS,
    BURST_NS,
    HOPELESS,
    LEAST_NS,
    MOST_NS,
    take_turns,
)

__all__ = ["Kernel", "LocalKernels", "load_library"]

_MOST_COPIES = 32


class LocalKernels:
    """Answers requests to measure one candidate or to let several compete.

    Args:
        seed: of the operands.
        cold_bytes: the weights of a call are taken from copies of so many bytes in turn, so that
            they come from beyond the cores' own caches, as in a whole model; 0 for always the same.
    """

    def __init__(self, *, seed: int, cold_bytes: int) -> None:
        self._seed = seed
        self._cold_bytes = cold_bytes
        self._threads: dict[int, ComputeThread] = {}
        self._key = ""
        self._workload: TunableWorkload
        self._operands: Operands
        self._expected: Array

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        self._prepare(request["workload"])
        thread = self._thread(request["threads"])
        if request["op"] == "measure":
            return thread.call(self._measure, request)
        return thread.call(self._contest, request)

    def _prepare(self, workload: dict[str, Any]) -> None:
        key = canonical(workload)
        if key == self._key:
            return
        self._workload = workload_from(workload)
        self._operands = make_operands(self._workload, self._seed)
        self._expected = reference(self._workload, self._operands)
        self._key = key

    def _thread(self, threads: int) -> ComputeThread:
        if threads not in self._threads:
            self._threads[threads] = ComputeThread(threads)
        return self._threads[threads]

    def _measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kernel = self._load(request)
        error = kernel.check(self._expected)
        best_ns = request["best_ms"] * 1e6 if request.get("best_ms") else math.inf
        values, tight = kernel.sample(best_ns)
        # Once more: a race between threads need not show the first time.
        error = max(error, kernel.check(self._expected))
        return {
            "cost_ms": typical(values) / 1e6,
            "repeats": len(values) * kernel.batch,
            "is_tight": tight,
            "error_max": error,
        }

    def _contest(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kernels = [self._load(entry) for entry in request["entries"]]
        times = take_turns(kernels, self._expected, rounds=request["rounds"], seed=request["seed"])
        return {"times_ms": times}

    def _load(self, entry: Mapping[str, Any]) -> Kernel:
        plan = plan_from(entry["plan"])
        library = load_library(base64.b64decode(entry["library"]))
        to_tensor = tvm.runtime.tensor
        if isinstance(plan, StockPlan):
            steps = [stock_call(library, plan, self._workload, self._operands)]
        else:
            steps = calls(self._workload, plan, self._operands)
        weight_bytes = sum(
            array.nbytes
            for call in steps
            for index in call.weights
            if (array := call.inputs[index]) is not None
        )
        copies = max(1, math.ceil(self._cold_bytes / max(1, weight_bytes)))
        copies = min(_MOST_COPIES, max(copies, 2 if self._cold_bytes else 1))
        fixed = [
            [
                None if array is None or index in call.weights else to_tensor(array)
                for index, array in enumerate(call.inputs)
            ]
            for call in steps
        ]
        outputs = [to_tensor(np.zeros(call.shape, call.dtype)) for call in steps]
        variants = []
        for _ in range(copies if weight_bytes else 1):
            bound: list[Callable[[], Any]] = []
            for position, call in enumerate(steps):
                arguments = [
                    outputs[position - 1]
                    if array is None
                    else to_tensor(array)
                    if index in call.weights
                    else fixed[position][index]
                    for index, array in enumerate(call.inputs)
                ]
                bound.append(_bind(library[call.symbol], [*arguments, outputs[position]]))
            variants.append(bound)
        return Kernel(variants, outputs)


def _bind(function: Any, arguments: Sequence[Any]) -> Callable[[], Any]:
    return lambda: function(*arguments)


_loaded = itertools.count(1)


def load_library(data: bytes) -> Any:
    """Load a library that was never a file: there is nothing to clean up after a crash.

    The loader takes a name that it has seen before for the same library, and numbers of open files
    come again; so the path is spelled another way each time, a `/.` for each 1 of a counter.
    """
    spelled = "".join("/." if digit == "1" else "/" for digit in f"{next(_loaded):b}")
    handle = os.memfd_create("kernel")
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(data)
        load = tvm.get_global_func("ffi.Module.load_from_file.so")
        return load(f"/proc/self/fd{spelled}/{handle}", "so")
    finally:
        os.close(handle)


@dataclass
class Kernel:
    """One candidate, loaded and bound to its operands."""

    variants: list[list[Callable[[], Any]]]
    """The calls to make, once for each copy of the weights."""
    outputs: list[Any]
    batch: int = 1
    """Runs that are timed as one."""
    _turn: int = 0

    def check(self, expected: Array) -> float:
        """Compute once over a spoiled output and return the largest difference.

        Raises:
            WrongResultError: it is beyond the tolerance.
        """
        for output in self.outputs[:-1]:
            output.copyfrom(spoilt(output.shape, None))
        self.outputs[-1].copyfrom(spoilt(self.outputs[-1].shape, expected))
        self._run()
        return largest_error(self.outputs[-1].numpy(), expected)

    def sample(self, best_ns: float) -> tuple[list[float], bool]:
        """Time runs until they agree; returns nanoseconds a run, and whether they do."""
        self._choose_batch()
        values: list[float] = []
        end = time.perf_counter_ns() + MOST_NS
        least = time.perf_counter_ns() + LEAST_NS
        while (now := time.perf_counter_ns()) < end:
            values.append(self._timed())
            if len(values) >= 4 and min(values) > HOPELESS * best_ns:
                return values, False
            if now > least and is_tight(values):
                return values, True
        return values, is_tight(values)

    def burst(self) -> list[float]:
        """Time runs for one turn of a contest, after one that brings the caches back."""
        if self.batch == 1:
            self._choose_batch()
        self._run()
        values: list[float] = []
        end = time.perf_counter_ns() + BURST_NS
        while time.perf_counter_ns() < end or len(values) < 3:
            values.append(self._timed())
        return values

    def _choose_batch(self) -> None:
        for _ in range(3):
            self._run()
        single = min(self._timed() for _ in range(3))
        self.batch = max(1, math.ceil(BATCH_NS / single))

    def _timed(self) -> float:
        begin = time.perf_counter_ns()
        for _ in range(self.batch):
            self._run()
        return (time.perf_counter_ns() - begin) / self.batch

    def _run(self) -> None:
        self._turn = (self._turn + 1) % len(self.variants)
        for call in self.variants[self._turn]:
            call()
