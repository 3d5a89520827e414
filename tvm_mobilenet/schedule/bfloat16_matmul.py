"""Matrix products of bfloat16 on x86: pairs of products added to float32 by one instruction.

VDPBF16PS takes two neighbouring steps of the depth at once: the weights are packed in pairs, and a
pair of the row is spread over a vector as the 32 bits that it is. Sums are float32 throughout; what
is stored is rounded to the nearest, halves to even. The same register tile as in float32, with half
of the loads and half of the multiply-adds.

TVM spells bfloat16 as 16-bit integers before LLVM sees it, so the two instructions come as
functions of LLVM's own language, which are inlined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ml_dtypes
import numpy as np

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    apply_epilogue,
    constant,
    overlapping_start,
    stored_as,
    task_loop,
    write_kernel,
)
from tvm_mobilenet.schedule.matmul import plan_matmul
from tvm_mobilenet.schedule.register_tile import Panel, column_panels
from tvm_mobilenet.schedule.workload import MatmulWorkload

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "BfloatMatmulPlan",
    "DotProduct",
    "can_multiply_pairs",
    "pack_bfloat_matmul",
    "plan_bfloat_matmul",
    "write_bfloat_matmul",
]

DotProduct = Literal["instruction", "spelled"]
"""`spelled` computes what the instruction does in plain float32, for processors without it."""

_LANES = 16


@dataclass(frozen=True, kw_only=True)
class BfloatMatmulPlan:
    """How a product of bfloat16 is computed."""

    row_tile: int
    """Rows of the register tile."""
    column_vectors: int
    """Vectors of the register tile, and of a weight panel."""
    lanes: int
    """Columns of a full vector."""
    outer: Literal["rows", "columns"]
    """Which loop is outside, and is cut among the threads."""
    is_parallel: bool
    """Cut the tasks among the threads."""

    def panels(self, columns: int) -> list[Panel]:
        """Return the weight panels of this plan."""
        return column_panels(columns, self.lanes, self.column_vectors)


def can_multiply_pairs(workload: MatmulWorkload, cpu: Cpu) -> bool:
    """Tell whether the instruction serves a product: whole pairs, and whole vectors of columns."""
    return cpu.has_bf16 and workload.depth % 2 == 0 and workload.columns % _LANES == 0


def plan_bfloat_matmul(workload: MatmulWorkload, cpu: Cpu) -> BfloatMatmulPlan:
    """Compute the plan: the tile of the float32 product of the same accumulators."""
    plan = plan_matmul(workload, cpu)
    return BfloatMatmulPlan(
        row_tile=plan.row_tile,
        column_vectors=plan.column_vectors,
        lanes=_LANES,
        outer=plan.outer,
        is_parallel=plan.is_parallel,
    )


def pack_bfloat_matmul(weights: np.ndarray, plan: BfloatMatmulPlan) -> np.ndarray:
    """Return weights (depth, columns) as one flat bfloat16 array.

    Panel by panel, each (depth / 2, width, 2).
    """
    rounded = weights.astype(ml_dtypes.bfloat16)
    pairs = rounded.reshape(weights.shape[0] // 2, 2, -1).transpose(0, 2, 1)
    panels = plan.panels(weights.shape[1])
    return np.concatenate([pairs[:, p.start : p.start + p.width].reshape(-1) for p in panels])


def write_bfloat_matmul(
    workload: MatmulWorkload,
    plan: BfloatMatmulPlan,
    *,
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    dot: DotProduct = "instruction",
) -> PrimFunc:
    """Write the kernel (x, w[, bias][, residual]) -> y; all bfloat16 but the bias, float32.

    w is as `pack_bfloat_matmul` lays it out.
    """
    epilogue = workload.epilogue
    parameters = [Parameter("x", x_shape), Parameter("w", (workload.depth * workload.columns,))]
    if epilogue.bias:
        parameters.append(Parameter("bias", (workload.columns,)))
    if epilogue.residual:
        parameters.append(Parameter("residual", y_shape))
    parameters.append(Parameter("y", y_shape))

    def body(kernel: KernelWriter) -> None:
        with T.attr(0, "pragma_import_llvm", _FUNCTIONS[dot]):
            writer = _Writer(kernel, workload, plan)
            row_tiles = math.ceil(workload.rows / plan.row_tile)
            panels = plan.panels(workload.columns)
            full = [panel for panel in panels if panel.vectors == panels[0].vectors]

            def row_at(index: Expr) -> Expr:
                return overlapping_start(index, plan.row_tile, workload.rows)

            if plan.outer == "rows":
                with task_loop(row_tiles, plan.is_parallel) as index:
                    with T.serial(0, len(full)) as panel:
                        writer.tile(row_at(index), full[0], panel * full[0].width)
                    for tail in panels[len(full) :]:
                        writer.tile(row_at(index), tail, tail.start)
                return
            with task_loop(len(full), plan.is_parallel) as panel, T.serial(0, row_tiles) as index:
                writer.tile(row_at(index), full[0], panel * full[0].width)
            for tail in panels[len(full) :]:
                with task_loop(row_tiles, plan.is_parallel) as index:
                    writer.tile(row_at(index), tail, tail.start)

    with stored_as("bfloat16"):
        return write_kernel("float32", parameters, body)


class _Writer:
    """Writes register tiles of one product."""

    def __init__(
        self, kernel: KernelWriter, workload: MatmulWorkload, plan: BfloatMatmulPlan
    ) -> None:
        self._kernel = kernel
        self._workload = workload
        self._rows = plan.row_tile
        self._x = _as_bits(kernel["x"], "int32")
        self._w = _as_bits(kernel["w"], "int32")
        self._y = _as_bits(kernel["y"], "int16")

    def tile(self, row: Expr, panel: Panel, start: Expr) -> None:
        """Write one register tile: rows from `row`, columns from `start`."""
        depth, columns = self._workload.depth, self._workload.columns
        bias, residual = self._kernel.get("bias"), self._kernel.get("residual")
        vectors = range(len(panel.vectors))
        sums = [Registers(self._rows, "float32", _LANES) for _ in vectors]
        for v in vectors:
            first = constant(0.0, "float32", _LANES)
            if bias is not None:
                first = bias.load(start + v * _LANES, _LANES)
            for r in range(self._rows):
                sums[v][r] = first
        with T.serial(0, depth // 2) as pair:
            at = start * (depth // 2) + pair * panel.width
            weights = [self._w[tirx.Ramp(at + v * _LANES, 1, _LANES)] for v in vectors]
            for r in range(self._rows):
                value = self._x[(row + r) * (depth // 2) + pair]
                for v in vectors:
                    spread = tirx.Broadcast(value, _LANES)
                    sums[v][r] = _call("float32x16", "dot", sums[v][r], spread, weights[v])
        for r in range(self._rows):
            for v in vectors:
                index = (row + r) * columns + start + v * _LANES
                value = apply_epilogue(
                    sums[v][r],
                    self._workload.epilogue,
                    _LANES,
                    "float32",
                    residual.load(index, _LANES) if residual else None,
                )
                rounded = _call("int16x16", "round", value)
                T.buffer_store(self._y, rounded, [tirx.Ramp(index, 1, _LANES)])


def _as_bits(memory: Memory, dtype: str) -> Expr:
    """Return the memory of bfloat16 as a buffer of integers."""
    address = T.Bind(tirx.address_of(memory.buffer[0]))
    return T.decl_buffer((1 << 24,), dtype, data=address)


def _call(dtype: str, name: str, *operands: Expr) -> Expr:
    return T.call_extern(dtype, f"tvm_mobilenet_bfloat16_{name}", *operands)


_DPBF16PS = "<16 x float> @llvm.x86.avx512bf16.dpbf16ps.512"
_CVTNEPS2BF16 = "<16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512"
_DOT = "define linkonce_odr <16 x float> @tvm_mobilenet_bfloat16_dot"
_ROUND = "define linkonce_odr <16 x i16> @tvm_mobilenet_bfloat16_round"
_FUNCTIONS: dict[DotProduct, str] = {
    # Two fused multiply-adds, the odd product first, without exceptions and with numbers below the
    # least normal one taken for 0. Source: Intel 64 and IA-32 Architectures Software Developer's
    # Manual, vol. 2: VDPBF16PS and VCVTNEPS2BF16.
    "instruction": f"""
declare {_DPBF16PS}(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare {_CVTNEPS2BF16}(<16 x float>)
{_DOT}(<16 x float> %sum, <16 x i32> %x, <16 x i32> %w) alwaysinline {{
  %a = bitcast <16 x i32> %x to <32 x bfloat>
  %b = bitcast <16 x i32> %w to <32 x bfloat>
  %r = call {_DPBF16PS}(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}}
{_ROUND}(<16 x float> %value) alwaysinline {{
  %r = call {_CVTNEPS2BF16}(<16 x float> %value)
  %bits = bitcast <16 x bfloat> %r to <16 x i16>
  ret <16 x i16> %bits
}}
""",
    "spelled": f"""
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
{_DOT}(<16 x float> %sum, <16 x i32> %x, <16 x i32> %w) alwaysinline {{
  %xe = shl <16 x i32> %x, splat (i32 16)
  %we = shl <16 x i32> %w, splat (i32 16)
  %xo = and <16 x i32> %x, splat (i32 -65536)
  %wo = and <16 x i32> %w, splat (i32 -65536)
  %x0 = bitcast <16 x i32> %xe to <16 x float>
  %w0 = bitcast <16 x i32> %we to <16 x float>
  %x1 = bitcast <16 x i32> %xo to <16 x float>
  %w1 = bitcast <16 x i32> %wo to <16 x float>
  %s = call <16 x float> @llvm.fma.v16f32(<16 x float> %x1, <16 x float> %w1, <16 x float> %sum)
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %x0, <16 x float> %w0, <16 x float> %s)
  ret <16 x float> %r
}}
{_ROUND}(<16 x float> %value) alwaysinline {{
  %bits = bitcast <16 x float> %value to <16 x i32>
  %up = lshr <16 x i32> %bits, splat (i32 16)
  %odd = and <16 x i32> %up, splat (i32 1)
  %half = add <16 x i32> %odd, splat (i32 32767)
  %moved = add <16 x i32> %bits, %half
  %top = lshr <16 x i32> %moved, splat (i32 16)
  %short = trunc <16 x i32> %top to <16 x i16>
  ret <16 x i16> %short
}}
""",
}
