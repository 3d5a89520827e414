"""What a GPU's figures predict for each kernel of a model: no measurement, a bound.

A kernel takes no less than its multiply-adds at the device's peak, and no less than its bytes at
the bandwidth of its memory, each tensor moved once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tvm_mobilenet.frontend.dataflow import Dataflow
from tvm_mobilenet.schedule.mali.families import is_gpu_plan, item_cost, work_items
from tvm_mobilenet.schedule.mali.occupancy import threads_in_flight
from tvm_mobilenet.schedule.select import KernelCall, Selection

if TYPE_CHECKING:
    from tvm_mobilenet.gpu import Gpu

__all__ = ["KernelPrediction", "predict_kernel", "predict_selection", "total_ms"]


@dataclass(frozen=True)
class KernelPrediction:
    """What a device's limits say of one kernel."""

    kernel: str
    family: str
    calls: int
    """How often one inference calls it."""
    macs: int
    """Multiply-adds of one call."""
    bytes: int
    """Bytes of inputs, weights and output of one call."""
    compute_ms: float
    """Multiply-adds at the device's peak."""
    memory_ms: float
    """Bytes at the bandwidth of its memory."""
    work_items: int
    registers: int
    """32-bit registers that a work-item holds, by the plan; the driver's compiler decides."""
    threads: int
    """Work-items that a core holds with so many registers."""

    @property
    def ms(self) -> float:
        """What one call takes at least."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        """Which of the two limits is the tighter one."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


def predict_kernel(kernel: KernelCall, gpu: Gpu, calls: int = 1) -> KernelPrediction:
    """Return what a device's figures predict for a kernel."""
    w = kernel.workload
    rate = 2 if w.dtype == "float16" else 1
    macs_per_ms = gpu.peak_gflops / 2 * rate * 1e6
    registers = item_cost(w, kernel.plan).registers
    return KernelPrediction(
        kernel=kernel.symbol,
        family=kernel.family,
        calls=calls,
        macs=w.macs,
        bytes=w.bytes,
        compute_ms=w.macs / macs_per_ms,
        memory_ms=w.bytes / (gpu.bandwidth_gbs * 1e6),
        work_items=work_items(w, kernel.plan),
        registers=registers,
        threads=threads_in_flight(registers, gpu),
    )


def predict_selection(selection: Selection, gpu: Gpu) -> tuple[KernelPrediction, ...]:
    """Return a prediction for each kernel of a module, in the order in which they first run.

    Kernels of the fallback are not among them: nothing is known of what they do. Nor are those that
    the processor computes.
    """
    calls: Counter[str] = Counter()
    for binding in Dataflow(selection.mod).bindings:
        call = binding.value
        if getattr(getattr(call, "op", None), "name", "") == "relax.call_tir":
            calls[call.args[0].name_hint] += 1
    return tuple(
        predict_kernel(selection.kernels[symbol], gpu, count)
        for symbol, count in calls.items()
        if symbol in selection.kernels and is_gpu_plan(selection.kernels[symbol].plan)
    )


def total_ms(predictions: Sequence[KernelPrediction]) -> float:
    """Return what an inference takes at least, kernels one after the other."""
    return sum(found.ms * found.calls for found in predictions)
