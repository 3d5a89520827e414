"""Integer kernels without weights: global average, sum of two tensors, quantized model input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    broadcast,
    constant,
    split_lanes,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.integer.isa import arithmetic
from tvm_mobilenet.schedule.integer.requantize import Arithmetic, group_sizes, to_bytes
from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerPoolWorkload,
    QuantizeWorkload,
    Requantize,
)
from tvm_mobilenet.schedule.intrinsics.vectors import integer, join, part, widen
from tvm_mobilenet.schedule.threads import CACHE_BYTES_PER_CYCLE, LAUNCH_CYCLES

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "ElementwisePlan",
    "narrow",
    "pieces",
    "plan_elementwise",
    "write_blocks",
    "write_integer_add",
    "write_integer_pool",
    "write_quantize",
]

_NARROWED = 16
"""Bytes that are narrowed together."""


@dataclass(frozen=True, kw_only=True)
class ElementwisePlan:
    """How a kernel without weights is computed."""

    lanes: int
    """Numbers of 32 bits in a vector."""
    tasks: int
    """Tasks that are cut among the threads; 1 for none."""
    block: int = _NARROWED
    """Bytes of the output that one turn of the loop writes."""
    arithmetic: Arithmetic
    """Whose instructions round and narrow."""


class WithBytes(Protocol):
    """Of a workload, what it moves."""

    @property
    def bytes(self) -> int:
        """Bytes of inputs and output."""
        ...


def plan_elementwise(workload: WithBytes, cpu: Cpu) -> ElementwisePlan:
    """Compute the plan: threads where what they save is more than starting them costs."""
    lanes = cpu.lanes("float32")
    cycles = max(workload.bytes / CACHE_BYTES_PER_CYCLE, workload.bytes / lanes)
    pays = cpu.cores > 1 and cycles * (1 - 1 / cpu.cores) > LAUNCH_CYCLES
    return ElementwisePlan(
        lanes=min(lanes, _NARROWED), tasks=cpu.cores if pays else 1, arithmetic=arithmetic(cpu)
    )


def narrow(
    y: Memory, at: Expr, steps: list[Expr], lanes: int, requantize: Requantize, kind: Arithmetic
) -> None:
    """Store float32 vectors that lie side by side as bytes."""
    first = 0
    for count in group_sizes(len(steps), lanes, kind):
        value = to_bytes(steps[first : first + count], lanes, requantize, kind)
        y.store(at + first * lanes, value, lanes * count)
        first += count


def pieces(values: Expr, count: int, lanes: int) -> list[tuple[Expr, int]]:
    """Cut a vector of `count` into vectors of at most `lanes`."""
    if count <= lanes:
        return [(values, count)]
    return [(part(values, at, lanes), lanes) for at in range(0, count, lanes)]


def write_integer_pool(
    workload: IntegerPoolWorkload,
    plan: ElementwisePlan,
    *,
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
) -> PrimFunc:
    """Write the kernel x (batch, ..., channels) -> y, the requantized sum over what is between."""
    w = workload
    parameters = [Parameter("x", x_shape, w.dtype), Parameter("y", y_shape, w.requantize.dtype)]

    def body(kernel: KernelWriter) -> None:
        def vector(image: Expr, channel: Expr, count: int) -> None:
            width = min(count, plan.lanes)
            sums = Registers(max(1, count // width), "int32", width)
            for index in range(max(1, count // width)):
                sums[index] = integer(w.bias, "int32", width)
            with T.serial(0, w.pixels) as pixel:
                at = (image * w.pixels + pixel) * w.channels + channel
                # Sums in 16 bits would be fewer; a pool is a thousandth of a model.
                loaded = kernel["x"].load(at, count)
                for index, (piece, lanes) in enumerate(pieces(loaded, count, width)):
                    sums[index] = sums[index] + widen(piece, "int32", lanes)
            scale = constant(w.scale, "float32", width)
            steps = [
                widen(sums[index], "float32", width) * scale
                for index in range(max(1, count // width))
            ]
            at = image * w.channels + channel
            narrow(kernel["y"], at, steps, width, w.requantize, plan.arithmetic)

        spans = split_lanes(w.channels, plan.block)
        full = w.channels // plan.block
        with T.serial(0, w.batch) as image:
            if full:
                with task_loop(full, plan.tasks > 1) as index:
                    vector(image, index * plan.block, plan.block)
            for offset, count in spans[full:]:
                vector(image, offset, count)

    return write_kernel(w.dtype, parameters, body)


def write_integer_add(
    workload: IntegerAddWorkload, plan: ElementwisePlan, *, shape: tuple[int, ...]
) -> PrimFunc:
    """Write the kernel (a, b) -> y, all of one shape."""
    w = workload
    parameters = [
        Parameter("a", shape, w.a_dtype),
        Parameter("b", shape, w.b_dtype),
        Parameter("y", shape, w.requantize.dtype),
    ]

    def body(kernel: KernelWriter) -> None:
        def operand(name: str, at: Expr, count: int) -> list[Expr]:
            zero = w.a_zero_point if name == "a" else w.b_zero_point
            factor = w.a_factor if name == "a" else w.b_factor
            loaded = widen(kernel[name].load(at, count), "int16", count)
            # Exact in 16 bits, and one instruction for eight.
            centred = loaded - integer(zero, "int16", count) if zero else loaded
            return [
                widen(piece, "float32", lanes) * constant(factor, "float32", lanes)
                for piece, lanes in pieces(centred, count, plan.lanes)
            ]

        def block(at: Expr, count: int) -> None:
            both = zip(operand("a", at, count), operand("b", at, count), strict=True)
            steps = [left + right for left, right in both]
            width = min(count, plan.lanes)
            narrow(kernel["y"], at, steps, width, w.requantize, plan.arithmetic)

        write_blocks(w.elements, plan, block)

    return write_kernel("int8", parameters, body)


def write_blocks(
    elements: int,
    plan: ElementwisePlan,
    write: Callable[[Expr, int], None],
    begin: Callable[[], None] | None = None,
) -> None:
    """Write a loop over blocks of elements, cut among threads, and what is left over.

    `begin` writes what each thread does first.
    """
    tasks, block = plan.tasks, plan.block
    full = elements // block
    per_task = -(-full // tasks)
    if full:
        with task_loop(tasks, tasks > 1) as task:
            first = T.min(task * per_task, max(0, full - per_task)) if tasks > 1 else 0
            if begin is not None:
                begin()
            with T.serial(0, per_task) as index:
                write((first + index) * block, block)
    for offset, count in split_lanes(elements % block, block):
        write(full * block + offset, count)


def write_quantize(
    workload: QuantizeWorkload,
    plan: ElementwisePlan,
    *,
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
) -> PrimFunc:
    """Write the kernel x (N, C, H, W) float32 -> y (N, H, W, C): quantized and interleaved."""
    w = workload
    parameters = [Parameter("x", x_shape, "float32"), Parameter("y", y_shape, w.requantize.dtype)]

    def body(kernel: KernelWriter) -> None:
        def channel(image: Expr, pixel: Expr, index: int, count: int) -> Expr:
            at = (image * w.channels + index) * w.pixels + pixel
            width = min(count, plan.lanes)
            steps = [
                kernel["x"].load(at + offset, width) / broadcast(_float(w.step), width)
                for offset in range(0, count, width)
            ]
            done, values = 0, []
            sizes = group_sizes(len(steps), width, plan.arithmetic)
            for size in sizes:
                values.append(
                    to_bytes(steps[done : done + size], width, w.requantize, plan.arithmetic)
                )
                done += size
            return join(values, width * sizes[0])

        def block(image: Expr, pixel: Expr, count: int) -> None:
            dtype = w.requantize.dtype
            planes = [Registers(1, dtype, count) for _ in range(w.channels)]
            for index in range(w.channels):
                planes[index][0] = channel(image, pixel, index, count)
            order = [index * count + at for at in range(count) for index in range(w.channels)]
            at = (image * w.pixels + pixel) * w.channels
            if count == 1:
                for index in range(w.channels):
                    kernel["y"].store(at + index, planes[index][0])
                return
            together = tirx.Shuffle([plane[0] for plane in planes], order)
            kernel["y"].store(at, together, count * w.channels)

        with T.serial(0, w.batch) as image:
            write_blocks(w.pixels, plan, lambda pixel, count: block(image, pixel, count))

    return write_kernel("float32", parameters, body)


def _float(value: float) -> Expr:
    return tirx.FloatImm("float32", value)
