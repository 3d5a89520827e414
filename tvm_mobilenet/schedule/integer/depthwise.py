"""Integer depthwise convolutions: channel by channel vector, over an image copied with its padding.

A task copies the rows that it needs into scratch memory, a plane for each vector of channels, with
the zero point where the padding is, and in the type that is multiplied. The tiles then know no
border, neighbouring columns load as pairs, and the filter of a plane stays in registers. The copy
takes two or three instructions for each vector of what takes fifty and more.

`widening` (Arm): int8 products of two taps are added up in 16 bits, which they fit into, then
widened. `dots` (VNNI): four taps at once, see `depthwise_dots.py`. `float` (elsewhere): whole
numbers in float32. Sums of 9 or 25 products of bytes stay below 2**24 and are exact in it, and a
fused multiply-add does in one instruction what takes three on integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Parameter,
    Registers,
    constant,
    overlapping_start,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.integer.depthwise_dots import (
    QUAD,
    choose_dots_tile,
    filter_blocks,
    pack_filters,
    write_dots,
)
from tvm_mobilenet.schedule.integer.isa import arithmetic, best_product
from tvm_mobilenet.schedule.integer.requantize import (
    Arithmetic,
    group_sizes,
    store_narrow,
    to_bytes,
    to_bytes_by_four,
)
from tvm_mobilenet.schedule.integer.workload import IntegerConvWorkload
from tvm_mobilenet.schedule.intrinsics import aarch64, x86
from tvm_mobilenet.schedule.intrinsics.vectors import integer, part, same_bits, widen
from tvm_mobilenet.schedule.threads import CACHE_BYTES_PER_CYCLE, LAUNCH_CYCLES

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "IntegerDepthwisePlan",
    "PackedFilters",
    "pack_integer_depthwise",
    "plan_integer_depthwise",
    "write_integer_depthwise",
]

Totals = Callable[[int, int], list[Expr]]
"""Given a row and a column of the tile, its totals as float32 vectors."""

_EXACT_FLOAT = 2**24
_INT16_WEIGHTS = 255
"""Sum of |w| over products that are added up in 16 bits: 255 * 128 is below 32768, 256 is not."""


@dataclass(frozen=True, kw_only=True)
class IntegerDepthwisePlan:
    """How an integer depthwise convolution is computed."""

    kind: Literal["widening", "dots", "float"]
    lanes: int
    """Channels of one plane."""
    row_tile: int
    """Output rows of the register tile."""
    column_tile: int
    """Output columns of the register tile."""
    row_block: int
    """Output rows of one task."""
    plane_block: int
    """Planes of one task."""
    copied_pixels: int = 8
    """Pixels that are copied a turn, their addresses constants apart."""
    pairs: bool = True
    """Add up two products in 16 bits; where the weights do not let it, none."""
    stride: int = 1
    """`dots`: columns from one output to the next, which the filters are laid out for."""
    exact_bias: bool = True
    """`float`: the bias is added in float32; where it is too large for that, as an integer."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    arithmetic: Arithmetic
    """Whose instructions round and narrow."""


def plan_integer_depthwise(workload: IntegerConvWorkload, cpu: Cpu) -> IntegerDepthwisePlan:
    """Compute the plan from the register file, the caches and the number of cores."""
    w = workload
    kind: Literal["widening", "dots", "float"] = "widening" if cpu.isa == "neon" else "float"
    if best_product(cpu) == "vnni":
        kind = "dots"
    lanes = 16 if kind == "widening" else cpu.lanes("float32")
    if kind == "dots":
        lanes = _dots_lanes(w.in_channels, cpu)
    planes = math.ceil(w.in_channels / lanes)
    taps = w.kernel[0] * w.kernel[1]
    # Three dots do what nine multiply-adds do, in half of the instructions.
    each = 2 if kind == "dots" else 4
    cycles = max(w.macs / lanes * each / cpu.fma_units, w.bytes / CACHE_BYTES_PER_CYCLE)
    is_parallel = cpu.cores > 1 and cycles * (1 - 1 / cpu.cores) > LAUNCH_CYCLES
    if kind == "widening":
        # Two rows share two thirds of their pixels; a wider tile makes LLVM spill.
        row_tile, column_tile = (2, 1) if taps <= 9 else (1, 1)
    elif kind == "dots":
        row_tile, column_tile = choose_dots_tile(w, cpu)
    else:
        row_tile, column_tile = 1, max(2, min(8, cpu.vector_registers // 2))
    row_tile, column_tile = min(row_tile, w.out_height), min(column_tile, w.out_width)
    row_block, plane_block = _task(w, cpu, planes, lanes, is_parallel, row_tile)
    return IntegerDepthwisePlan(
        kind=kind,
        lanes=lanes,
        row_tile=row_tile,
        column_tile=column_tile,
        row_block=row_block,
        plane_block=plane_block,
        stride=w.stride[1],
        is_parallel=is_parallel,
        arithmetic=arithmetic(cpu),
    )


def _dots_lanes(channels: int, cpu: Cpu) -> int:
    """Return the channels of a plane: whole vectors, or halves where less of them is empty."""
    widest = QUAD * cpu.lanes("int32")
    sizes = [lanes for lanes in (widest, widest // 2, widest // 4) if lanes >= 16]
    # A half vector takes two thirds of the time of a whole one, a quarter as long as a half.
    return min(sizes, key=lambda lanes: math.ceil(channels / lanes) * (lanes == widest or 0.66))


def _task(
    w: IntegerConvWorkload, cpu: Cpu, planes: int, lanes: int, is_parallel: bool, row_tile: int
) -> tuple[int, int]:
    """Return output rows and planes of one task: every core busy, rows copied twice seldom.

    One plane at a time is in scratch memory, which should fit half of the L2 cache; with `dots` a
    quarter, since what they read and write comes through it as fast.
    """
    item = 1 if cpu.isa == "neon" or best_product(cpu) == "vnni" else 4
    budget = cpu.l2_kib * 1024 // (4 if best_product(cpu) == "vnni" else 2) or 128 * 1024
    line = (w.width + w.padding[1] + w.padding[3]) * lanes * item
    best: tuple[float, int, int] | None = None
    for blocks in range(1, w.out_height + 1):
        rows = math.ceil(math.ceil(w.out_height / blocks) / row_tile) * row_tile
        rows = min(rows, w.out_height)
        tall = (rows - 1) * w.stride[0] + w.kernel[0]
        if tall * line > budget and rows > row_tile:
            continue
        row_tasks = math.ceil(w.out_height / rows) * w.batch
        for plane_tasks in range(1, planes + 1):
            if planes % plane_tasks:
                continue
            tasks = row_tasks * plane_tasks
            idle = math.ceil(tasks / cpu.cores) * cpu.cores / tasks if is_parallel else 1.0
            computed = row_tasks * rows / (w.out_height * w.batch)
            copied = row_tasks * tall / (w.out_height * w.stride[0] * w.batch)
            cost = idle * (computed + 0.15 * copied) + 0.002 * tasks
            if best is None or cost < best[0]:
                best = (cost, rows, planes // plane_tasks)
    assert best is not None
    return best[1], best[2]


@dataclass(frozen=True)
class PackedFilters:
    """What a kernel reads beside its input, laid out for a plan."""

    plan: IntegerDepthwisePlan
    """The plan, with what the weights do not allow taken back."""
    weights: np.ndarray
    """int8, (planes, taps, lanes), flat."""
    bias: np.ndarray
    """int32, or float32 where it is added in float32; empty lanes included."""
    scale: np.ndarray
    """float32, likewise."""

    @property
    def arrays(self) -> list[np.ndarray]:
        """The kernel's arguments between x and y."""
        return [self.weights, self.bias, self.scale]


def pack_integer_depthwise(
    weights: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    dtype: str,
    plan: IntegerDepthwisePlan,
) -> PackedFilters:
    """Lay out int8 weights (channels, kH, kW), int32 bias and float32 scale for a plan."""
    channels = weights.shape[0]
    taps = weights.reshape(channels, -1)
    magnitude = np.abs(taps.astype(np.int64))
    wide_bias = bias.astype(np.int64)
    empty = -channels % plan.lanes
    if plan.kind == "widening":
        if dtype == "uint8":
            wide_bias = wide_bias + 128 * taps.astype(np.int64).sum(axis=1)
            wide_bias = wide_bias.astype(np.uint64).astype(np.uint32).view(np.int32)
        together = np.pad(magnitude, ((0, 0), (0, taps.shape[1] % 2)))
        if (together[:, ::2] + together[:, 1::2] > _INT16_WEIGHTS).any():
            plan = replace(plan, pairs=False)
        kind: type[np.generic] = np.int32
    elif plan.kind == "dots":
        if dtype == "int8":
            wide_bias = wide_bias - 128 * taps.astype(np.int64).sum(axis=1)
            wide_bias = wide_bias.astype(np.uint64).astype(np.uint32).view(np.int32)
        return _pack_dots(weights, wide_bias, scale, plan)
    else:
        largest = 255 * magnitude.sum(axis=1) + np.abs(wide_bias)
        if largest.max(initial=0) >= _EXACT_FLOAT:
            plan = replace(plan, exact_bias=False)
        kind = np.float32 if plan.exact_bias else np.int32
    padded = np.pad(taps, ((0, empty), (0, 0)))
    by_plane = padded.reshape(-1, plan.lanes, taps.shape[1]).transpose(0, 2, 1)
    return PackedFilters(
        plan,
        np.ascontiguousarray(by_plane).reshape(-1),
        np.pad(wide_bias.astype(kind), (0, empty)),
        np.pad(scale.astype(np.float32), (0, empty)),
    )


def _pack_dots(
    weights: np.ndarray, bias: np.ndarray, scale: np.ndarray, plan: IntegerDepthwisePlan
) -> PackedFilters:
    channels, *kernel = weights.shape
    empty = -channels % plan.lanes
    taps = np.pad(weights.reshape(channels, -1), ((0, empty), (0, 0)))
    filters = pack_filters(
        taps.reshape(-1, plan.lanes, taps.shape[1]),
        (kernel[0], kernel[1]),
        plan.stride,
        plan.column_tile,
    )
    order = x86.interleaved_order(plan.lanes // QUAD)

    def ordered(values: np.ndarray) -> np.ndarray:
        return np.pad(values, (0, empty)).reshape(-1, plan.lanes)[:, order].reshape(-1)

    return PackedFilters(
        plan,
        filters.reshape(-1),
        ordered(bias.astype(np.int32)),
        ordered(scale.astype(np.float32)),
    )


def write_integer_depthwise(workload: IntegerConvWorkload, packed: PackedFilters) -> PrimFunc:
    """Write the kernel (x NHWC, w, bias, scale) -> y NHWC, as `pack_integer_depthwise` lays out."""
    w = workload
    assert w.requantize is not None
    parameters = [
        Parameter("x", (w.batch, w.height, w.width, w.in_channels), w.dtype),
        Parameter("w", packed.weights.shape, "int8"),
        Parameter("bias", packed.bias.shape, str(packed.bias.dtype)),
        Parameter("scale", packed.scale.shape, "float32"),
        Parameter("y", (w.batch, w.out_height, w.out_width, w.out_channels), w.requantize.dtype),
    ]

    def body(kernel: KernelWriter) -> None:
        plan = packed.plan
        planes = math.ceil(w.in_channels / plan.lanes)
        plane_tasks = math.ceil(planes / plan.plane_block)
        row_tasks = math.ceil(w.out_height / plan.row_block)
        with task_loop(w.batch * row_tasks * plane_tasks, plan.is_parallel) as task:
            rows = task // plane_tasks
            image = rows // row_tasks if w.batch > 1 else 0
            block = rows % row_tasks if w.batch > 1 else rows
            first_row = overlapping_start(block, plan.row_block, w.out_height)
            writer = _PlaneWriter(kernel, w, plan)
            first_plane = task % plane_tasks * plan.plane_block
            full = w.in_channels // plan.lanes

            def whole(plane: Expr) -> None:
                writer.plane(image, first_row, plane, plan.lanes)

            if plane_tasks > 1 and full < planes:
                with T.serial(0, plan.plane_block) as index:
                    plane = first_plane + index
                    with T.If(plane < full):
                        with T.Then():
                            whole(plane)
                        with T.Else():
                            writer.plane(image, first_row, full, w.in_channels % plan.lanes)
                return
            count = full if plane_tasks == 1 else plan.plane_block
            if count:
                with T.serial(0, count) as index:
                    whole(first_plane + index)
            if plane_tasks == 1 and full < planes:
                writer.plane(image, first_row, full, w.in_channels % plan.lanes)

    return write_kernel(w.dtype, parameters, body)


class _PlaneWriter:
    """Writes one plane of a task: the copy, then the tiles."""

    def __init__(
        self, kernel: KernelWriter, workload: IntegerConvWorkload, plan: IntegerDepthwisePlan
    ) -> None:
        self._kernel, self._workload, self._plan = kernel, workload, plan
        w = workload
        self._rows = (plan.row_block - 1) * w.stride[0] + w.kernel[0]
        self._columns = (w.out_width - 1) * w.stride[1] + w.kernel[1]
        self._dtype = {"widening": "int8", "dots": "uint8", "float": "float32"}[plan.kind]
        # Quads reach up to three pixels beyond what they are for.
        pixels = self._rows * self._columns + (QUAD - 1 if plan.kind == "dots" else 0)
        self._image = kernel.scratch(pixels * plan.lanes, self._dtype)
        self._taps = w.kernel[0] * w.kernel[1]
        if plan.kind == "float":
            self._filter = kernel.scratch(self._taps * plan.lanes, self._dtype)

    def plane(self, image: Expr, first_row: Expr, plane: Expr, channels: int) -> None:
        """Write the output rows from `first_row` of the `channels` first channels of a plane."""
        w, plan = self._workload, self._plan
        self._copy(image, first_row, plane * plan.lanes, channels)
        if plan.kind == "float":
            base = plane * (self._taps * plan.lanes)
            for tap in range(self._taps):
                value = self._kernel["w"].load(base + tap * plan.lanes, plan.lanes)
                self._filter.store(
                    tap * plan.lanes, widen(value, "float32", plan.lanes), plan.lanes
                )
        row_tiles = math.ceil(plan.row_block / plan.row_tile)
        column_tiles = math.ceil(w.out_width / plan.column_tile)
        with T.serial(0, row_tiles) as row_index:
            row = overlapping_start(row_index, plan.row_tile, plan.row_block)
            with T.serial(0, column_tiles) as column_index:
                column = overlapping_start(column_index, plan.column_tile, w.out_width)
                self._tile(image, first_row, row, column, plane, channels)

    # -- the copy ----------------------------------------------------------------------------

    def _copy(self, image: Expr, first_row: Expr, channel: Expr, channels: int) -> None:
        w = self._workload
        top, left = w.padding[0], w.padding[1]
        inside = min(self._columns - left, w.width)
        fill = self._as_stored(integer(w.pad, w.dtype, self._plan.lanes))
        with T.serial(0, self._rows) as row:
            line = row * self._columns
            source = first_row * w.stride[0] + row - top

            def pad(start: int, stop: int, line: Expr = line) -> None:
                if start < stop:
                    with T.serial(start, stop) as column:
                        self._put(line + column, fill)

            def copy(line: Expr = line, source: Expr = source) -> None:
                start = (image * w.height + source) * w.width

                def put(column: Expr) -> None:
                    at = (start + column) * w.in_channels + channel
                    self._put(line + left + column, self._as_stored(self._read(at, channels)))

                pad(0, left)
                turn = self._plan.copied_pixels
                groups, single = divmod(inside, turn)
                if groups:
                    with T.serial(0, groups) as group:
                        for index in range(turn):
                            put(group * turn + index)
                for index in range(single):
                    put(groups * turn + index)
                pad(left + inside, self._columns)

            last = (w.out_height - 1) * w.stride[0] + w.kernel[0] - top
            if top == 0 and last <= w.height:
                copy()
            else:
                with T.If(tirx.all(source >= 0, source < w.height)):
                    with T.Then():
                        copy()
                    with T.Else():
                        pad(0, self._columns)

    def _put(self, pixel: Expr, value: Expr) -> None:
        self._image.store(pixel * self._plan.lanes, value, self._plan.lanes)

    def _read(self, at: Expr, channels: int) -> Expr:
        """Read `channels` neighbouring bytes as a whole vector; what is missing is 0."""
        x, lanes, dtype = self._kernel["x"], self._plan.lanes, self._workload.dtype
        if channels == lanes:
            return x.load(at, lanes)
        parts, offset, width = [], 0, lanes
        while offset < lanes:
            end = channels if offset < channels else lanes
            while width > end - offset:
                width //= 2
            present = offset < channels
            parts.append(x.load(at + offset, width) if present else integer(0, dtype, width))
            offset += width
            if offset == channels:
                width = lanes
        return tirx.Shuffle(parts, list(range(lanes)))

    def _as_stored(self, value: Expr) -> Expr:
        lanes, dtype = self._plan.lanes, self._workload.dtype
        if self._plan.kind == "float":
            return widen(value, "float32", lanes)
        if dtype == self._dtype:
            return value
        highest = integer(128 if dtype == "uint8" else -128, dtype, lanes)
        return same_bits(value ^ highest, f"{self._dtype}x{lanes}")

    # -- the tiles ---------------------------------------------------------------------------

    def _tile(
        self,
        image: Expr,
        first_row: Expr,
        row: Expr,
        column: Expr,
        plane: Expr,
        channels: int,
    ) -> None:
        w, plan = self._workload, self._plan
        write = {"widening": self._widening, "dots": self._dots, "float": self._floats}[plan.kind]
        totals = write(row, column, plane)
        lanes = {"widening": 4, "dots": plan.lanes // QUAD, "float": plan.lanes}[plan.kind]
        scales = [
            self._kernel["scale"].load(plane * plan.lanes + offset, lanes)
            for offset in range(0, plan.lanes, lanes)
        ]
        for r in range(plan.row_tile):
            for c in range(plan.column_tile):
                pixel = (image * w.out_height + first_row + row + r) * w.out_width + column + c
                at = pixel * w.out_channels + plane * plan.lanes
                self._store(at, totals(r, c), scales, lanes, channels)

    def _store(
        self, at: Expr, totals: list[Expr], scales: list[Expr], lanes: int, channels: int
    ) -> None:
        requantize = self._workload.requantize
        assert requantize is not None
        steps = [total * scale for total, scale in zip(totals, scales, strict=True)]
        if self._plan.kind == "dots":
            value = to_bytes_by_four(steps, lanes, requantize)
            store_narrow(self._kernel["y"], at, value, QUAD * lanes, channels)
            return
        first = 0
        for count in group_sizes(len(steps), lanes, self._plan.arithmetic):
            value = to_bytes(steps[first : first + count], lanes, requantize, self._plan.arithmetic)
            valid = channels - first * lanes
            if valid > 0:
                store_narrow(self._kernel["y"], at + first * lanes, value, lanes * count, valid)
            first += count

    def _pixel(self, row: Expr, column: Expr, y: int, x: int) -> Expr:
        w = self._workload
        line = row * w.stride[0] + y
        return (line * self._columns + column * w.stride[1] + x) * self._plan.lanes

    def _widening(self, row: Expr, column: Expr, plane: Expr) -> Totals:
        w, plan = self._workload, self._plan
        height = (plan.row_tile - 1) * w.stride[0] + w.kernel[0]
        width = (plan.column_tile - 1) * w.stride[1] + w.kernel[1]
        corner = self._pixel(row, column, 0, 0)
        pixels = Registers(height * width, "int8", 16)
        for y in range(height):
            for x in range(width):
                pixels[y * width + x] = self._image.load(corner + (y * self._columns + x) * 16, 16)
        base = plane * (self._taps * 16)
        weights = Registers(self._taps, "int8", 16)
        for tap in range(self._taps):
            weights[tap] = self._kernel["w"].load(base + tap * 16, 16)
        bias = [self._kernel["bias"].load(plane * 16 + 4 * i, 4) for i in range(4)]

        def total(r: int, c: int) -> list[Expr]:
            sums = Registers(4, "int32", 4)
            for i in range(4):
                sums[i] = bias[i]
            group = 2 if plan.pairs else 1
            for first in range(0, self._taps, group):
                for half in range(2):
                    products = None
                    for tap in range(first, min(first + group, self._taps)):
                        y = r * w.stride[0] + tap // w.kernel[1]
                        x = c * w.stride[1] + tap % w.kernel[1]
                        product = aarch64.widening_product(
                            pixels[y * width + x], weights[tap], half
                        )
                        products = product if products is None else products + product
                    for quarter in range(2):
                        wide = widen(part(products, 4 * quarter, 4), "int32", 4)
                        sums[2 * half + quarter] = sums[2 * half + quarter] + wide
            return [widen(sums[i], "float32", 4) for i in range(4)]

        return total

    def _floats(self, row: Expr, column: Expr, plane: Expr) -> Totals:
        w, plan = self._workload, self._plan
        lanes = plan.lanes
        sums = [Registers(plan.column_tile, "float32", lanes) for _ in range(plan.row_tile)]
        bias = self._kernel["bias"].load(plane * lanes, lanes)
        first = bias if plan.exact_bias else constant(0.0, "float32", lanes)
        for r in range(plan.row_tile):
            for c in range(plan.column_tile):
                sums[r][c] = first
        corner = self._pixel(row, column, 0, 0)
        for tap in range(self._taps):
            ky, kx = divmod(tap, w.kernel[1])
            weights = self._filter.load(tap * lanes, lanes)
            for r in range(plan.row_tile):
                for c in range(plan.column_tile):
                    y, x = r * w.stride[0] + ky, c * w.stride[1] + kx
                    value = self._image.load(corner + (y * self._columns + x) * lanes, lanes)
                    sums[r][c] = sums[r][c] + value * weights

        def total(r: int, c: int) -> list[Expr]:
            if plan.exact_bias:
                return [sums[r][c]]
            return [widen(widen(sums[r][c], "int32", lanes) + bias, "float32", lanes)]

        return total

    def _dots(self, row: Expr, column: Expr, plane: Expr) -> Totals:
        w, plan = self._workload, self._plan
        lanes, count = plan.lanes, plan.lanes // QUAD
        tile = plan.row_tile, plan.column_tile
        corner = self._pixel(row, column, 0, 0)
        blocks = len(filter_blocks(w.kernel, plan.stride, plan.column_tile))
        sums = write_dots(
            w,
            tile,
            lanes,
            lambda y, x: self._image.load(corner + (y * self._columns + x) * lanes, lanes),
            self._kernel["w"],
            plane * (blocks * QUAD * lanes),
            [self._kernel["bias"].load(plane * lanes + v * count, count) for v in range(QUAD)],
        )
        return lambda r, c: [widen(total, "float32", count) for total in sums(r, c)]
