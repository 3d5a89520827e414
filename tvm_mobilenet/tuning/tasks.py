"""What there is to tune in a model: each different kernel once, with how often it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.schedule.dispatch import select_for
from tvm_mobilenet.schedule.integer.isa import products_per_instruction
from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
    QuantizeWorkload,
)
from tvm_mobilenet.schedule.threads import CACHE_BYTES_PER_CYCLE
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.recorded import task_key
from tvm_mobilenet.tuning.records import Plan
from tvm_mobilenet.tuning.space import Space

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu, TargetSpec

__all__ = ["ModelTasks", "Task", "floor_ms", "largest", "model_tasks", "products_per_fma"]


@dataclass(frozen=True)
class Task:
    """One kernel to tune."""

    family: str
    workload: TunableWorkload
    calls: int
    """How often a model calls it in one inference."""

    @property
    def key(self) -> str:
        """What tells it from other tasks."""
        return task_key(self.family, self.workload)

    @property
    def name(self) -> str:
        """A short spelling for people, `separable 14x14x512 > 512`."""
        return f"{self.family} {_spell(self.workload)}"


def _spell(w: TunableWorkload) -> str:
    if isinstance(w, CascadeWorkload):
        last = w.stages[-1]
        end = f"{last.out_height}x{last.out_width}x{last.out_channels}"
        return f"{_spell(w.stages[0])} > .. > {end} ({len(w.stages)})"
    if isinstance(w, SeparableWorkload):
        return f"{_spell(w.depthwise)} > {w.pointwise.columns}"
    if isinstance(w, GatedWorkload):
        return _spell(w.pointwise)
    if isinstance(w, MatmulWorkload | IntegerMatmulWorkload):
        return f"{w.rows}x{w.depth}x{w.columns}"
    if isinstance(w, PoolWorkload | IntegerPoolWorkload | QuantizeWorkload):
        return f"{w.pixels}x{w.channels}"
    if isinstance(w, IntegerAddWorkload):
        return f"{w.elements}"
    stride = f"/{w.stride[0]}" if w.stride != (1, 1) else ""
    channels = f"{w.in_channels}" if w.is_depthwise else f"{w.in_channels} > {w.out_channels}"
    return f"{w.height}x{w.width}x{channels}{stride}"


@dataclass(frozen=True)
class ModelTasks:
    """What a search may do for a model, and what it leaves alone."""

    tasks: tuple[Task, ...]
    """In the order in which they first occur."""
    left_as_computed: tuple[str, ...]
    """Names of the kernels that no search changes: those of workloads that are not tunable."""


def model_tasks(onnx_path: Path, target: TargetSpec) -> ModelTasks:
    """Return what there is to tune in an ONNX file.

    A depthwise convolution and the pointwise one after it are one task, fused or not: whether they
    should be is for the search to say.
    """
    found: Counter[tuple[str, TunableWorkload]] = Counter()

    def note(family: str, workload: TunableWorkload) -> Plan | None:
        found[family, workload] += 1
        is_pair = isinstance(workload, SeparableWorkload)
        return Space(workload, target.cpu).start if is_pair else None

    model = onnx.shape_inference.infer_shapes(onnx.load(str(onnx_path)), data_prop=True)
    selection = select_for(canonicalize(import_onnx(model)), target, note)
    left = [
        kernel.symbol
        for kernel in selection.kernels.values()
        if not isinstance(kernel.workload, TunableWorkload)
    ]
    return ModelTasks(
        tuple(Task(family, workload, calls) for (family, workload), calls in found.items()),
        tuple(left),
    )


def largest(tasks: Sequence[Task], most: int | None) -> list[Task]:
    """Return the tasks with the most multiply-adds in an inference, `most` of them, in order."""
    ranked = sorted(tasks, key=lambda task: -task.calls * getattr(task.workload, "macs", 0))
    kept = ranked[:most]
    return [task for task in tasks if task in kept]


def products_per_fma(workload: TunableWorkload, cpu: Cpu) -> int:
    """Return how many multiply-adds one instruction of a kernel for the workload does at best."""
    if isinstance(workload, IntegerWorkload):
        return products_per_instruction(cpu)
    return cpu.lanes(workload.dtype)


def floor_ms(workload: TunableWorkload, cpu: Cpu, peak_gflops: float, threads: int) -> float:
    """Return what no kernel can beat: its multiply-adds at the peak, or its bytes.

    The clock is taken from the peak, that of float32; instructions that multiply bytes are taken
    to begin as often. The bytes come at the rate of the cores' caches.
    """
    lanes = cpu.lanes("float32")
    clock_ghz = peak_gflops / (2 * lanes * cpu.fma_units * threads)
    per_second = clock_ghz * cpu.fma_units * threads * products_per_fma(workload, cpu)
    compute = workload.macs / per_second / 1e6
    traffic = workload.bytes / (CACHE_BYTES_PER_CYCLE * clock_ghz * threads) / 1e6
    if isinstance(workload, ConvWorkload) and not workload.is_depthwise:
        return compute
    return max(compute, traffic)
