"""Integer matrix products: pointwise convolutions over NHWC, dense layers, unrolled convolutions.

A register tile of rows x vectors of columns stays in registers over the whole depth, as in the
float32 product. Rows are laid out first for the instruction that multiplies them (`rows.py`), the
weights at compile time; `products.py` says how each instruction set multiplies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvm_mobilenet._tvm import PrimFunc
from tvm_mobilenet.schedule.emit import KernelWriter, Parameter, task_loop, write_kernel
from tvm_mobilenet.schedule.integer.isa import ProductName, arithmetic, best_product
from tvm_mobilenet.schedule.integer.products import Remainder, make_product
from tvm_mobilenet.schedule.integer.requantize import Arithmetic
from tvm_mobilenet.schedule.integer.rows import CHUNK, PlainRows, Rows
from tvm_mobilenet.schedule.integer.tile_loops import Tiles
from tvm_mobilenet.schedule.integer.tiles import product_tiles
from tvm_mobilenet.schedule.integer.workload import IntegerMatmulWorkload
from tvm_mobilenet.schedule.threads import CACHE_BYTES_PER_CYCLE, LAUNCH_CYCLES

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = [
    "IntegerMatmulPlan",
    "PackedWeights",
    "can_multiply",
    "pack_integer_matmul",
    "plan_integer_matmul",
    "write_integer_matmul",
    "write_product",
]


@dataclass(frozen=True, kw_only=True)
class IntegerMatmulPlan:
    """How an integer matrix product is computed."""

    product: ProductName
    """The instruction that multiplies; see `products.py`."""
    row_tile: int
    """Rows of the register tile."""
    column_vectors: int
    """Vectors of the register tile, and of a weight panel."""
    lanes: int
    """Columns of a vector."""
    sums: int = 1
    """Products that `mlal` adds up in 16 bits: 2 or 4."""
    chunk: int = CHUNK
    """Bytes of a row that `mlal` multiplies at once: 16 or 32."""
    unroll: int = 1
    """Turns of the loop over the depth that are written out as one: pieces of 16 bytes of a row, of
    `chunk` bytes with `mlal`, single steps where bytes are broadcast."""
    outer: Literal["rows", "columns"]
    """Which loop is outside, and is cut among the threads."""
    block: int = 1
    """Tiles of rows, or panels of columns, of the outer loop that a task takes together, inside
    the other loop: what that one reads is then read once for them all."""
    prefetch: bool = False
    """With the columns outside, ask for a task's weights while the task before it is computed: a
    model's weights do not stay in the L2 cache from one inference to the next."""
    is_parallel: bool
    """Cut the tasks among the threads; False where starting them costs more than they save."""
    arithmetic: Arithmetic
    """Whose instructions round and narrow."""

    @property
    def step(self) -> int:
        """Bytes of the depth that lie together for each column."""
        if self.product == "mlal":
            return self.chunk
        return {"sdot": 4, "smmla": 8, "vnni": 4, "pairs": 2, "plain": 1}[self.product]

    def fitted(self, workload: IntegerMatmulWorkload) -> IntegerMatmulPlan:
        """Return the same plan without what exceeds a workload."""
        turns = workload.depth // (CHUNK if self.product in ("sdot", "smmla") else self.step)
        if self.product == "mlal":
            # The first chunk begins the sums, before the loop.
            turns = math.ceil(workload.depth / CHUNK) * CHUNK // self.chunk - 1
        plan = replace(
            self,
            row_tile=min(self.row_tile, workload.rows),
            column_vectors=min(self.column_vectors, math.ceil(workload.columns / self.lanes)),
            unroll=max(1, min(self.unroll, turns)),
        )
        width = plan.column_vectors * plan.lanes
        items, others = workload.rows // plan.row_tile, math.ceil(workload.columns / width)
        if plan.outer == "columns":
            items, others = workload.columns // width, math.ceil(workload.rows / plan.row_tile)
        # Where the other loop has one turn, and no thread takes tasks, blocks change nothing.
        is_idle = others == 1 and not plan.is_parallel
        return replace(plan, block=1 if is_idle else max(1, min(plan.block, items)))

    def panels(self, columns: int) -> list[tuple[int, int]]:
        """Return (first column, vectors) of each panel; the last vector may be partly empty."""
        vectors = math.ceil(columns / self.lanes)
        return [
            (first * self.lanes, min(self.column_vectors, vectors - first))
            for first in range(0, vectors, self.column_vectors)
        ]


def can_multiply(depth: int) -> bool:
    """Tell whether rows of that depth can be multiplied where they lie."""
    return depth % 8 == 0


def plan_integer_matmul(workload: IntegerMatmulWorkload, cpu: Cpu) -> IntegerMatmulPlan:
    """Compute the plan from the instruction set, the register file and the number of cores."""
    product = best_product(cpu)
    lanes = 4 if product in ("sdot", "smmla", "mlal") else cpu.lanes("int32")
    row_tile, vectors = min(
        product_tiles(product, workload.depth, cpu),
        key=lambda tile: _tile_cost(workload, product, lanes, cpu, *tile),
    )
    row_tiles = math.ceil(workload.rows / row_tile)
    panels = math.ceil(workload.columns / (lanes * vectors))
    plan = IntegerMatmulPlan(
        product=product,
        row_tile=row_tile,
        column_vectors=vectors,
        lanes=lanes,
        sums=(4 if workload.depth >= 32 else 2) if product == "mlal" else 1,
        chunk=32 if product == "mlal" and workload.depth >= 32 else CHUNK,
        unroll=2 if product == "mlal" and workload.depth >= 32 else 1,
        outer=_outer_loop(workload, product, row_tiles, panels, cpu),
        prefetch=product == "vnni" and min(row_tiles, panels) > 1,
        is_parallel=_pays_to_parallelize(workload, product, cpu),
        arithmetic=arithmetic(cpu),
    )
    return plan.fitted(workload)


def _tile_cost(
    workload: IntegerMatmulWorkload,
    product: ProductName,
    lanes: int,
    cpu: Cpu,
    rows: int,
    vectors: int,
) -> float:
    """Return the instructions of all tiles: products, loads, the loop and the end of each.

    For `vnni` they are cycles: as many dots a cycle as there are multipliers, four instructions of
    any kind, and every dot of a tile waits for the one before it.
    """
    step = {"sdot": 4, "smmla": 8, "mlal": 32, "vnni": 4, "pairs": 2, "plain": 1}[product]
    steps = math.ceil(workload.depth / step)
    total_vectors = math.ceil(workload.columns / lanes)

    def tile(height: int, width: int) -> float:
        inner: float
        if product == "vnni":
            dots = height * width
            inner = max(dots / cpu.fma_units, (dots + height + width + 2) / 4, _DOT_LATENCY)
            return steps * inner + 2.5 * dots + 20
        if product == "mlal":
            inner = 20 * height * width + height + 4 * width + 4
        elif product == "sdot":
            inner = height * width + math.ceil(height / 4) / 2 + width / 2 + 1
        elif product == "smmla":
            inner = 2 * width * math.ceil(height / 2) + math.ceil(height / 2) / 2 + width + 1
        else:
            products = {"pairs": 2, "plain": 3}[product]
            inner = products * height * width + height + width + 2
            # Several accumulators have to be in flight for a multiplier to stay busy.
            inner = max(inner, 10)
        return steps * inner + 7 * height * width + 12

    def height_cost(height: int) -> float:
        full, rest = divmod(total_vectors, vectors)
        return full * tile(height, vectors) + (tile(height, rest) if rest else 0)

    full, rest = divmod(workload.rows, rows)
    return full * height_cost(rows) + (height_cost(rest) if rest else 0)


_DOT_LATENCY = 5
"""Cycles of VPDPBUSD: 5 on Cascade Lake and Ice Lake, 4 on Zen 4 (uops.info)."""


def _outer_loop(
    workload: IntegerMatmulWorkload, product: ProductName, row_tiles: int, panels: int, cpu: Cpu
) -> Literal["rows", "columns"]:
    """Choose the loop that leaves the threads balanced; between equals, the one that moves less.

    With the rows outside, the weights are read again for each row tile; with the columns outside,
    the input for each panel. What is read again should fit the L2 cache. With `vnni` the next
    panel's weights are asked for ahead, which pays as soon as they do not fit the L1 cache.
    """

    def idle_share(tasks: int) -> float:
        return math.ceil(tasks / cpu.cores) * cpu.cores / tasks - 1

    weights, inputs = workload.depth * workload.columns, workload.rows * workload.depth
    l2_bytes = cpu.l2_kib * 1024
    rows_cost = idle_share(row_tiles) + (0.1 if weights > l2_bytes // 2 else 0)
    columns_cost = idle_share(panels) + (0.1 if inputs > l2_bytes // 2 else 0)
    if abs(rows_cost - columns_cost) > 0.02:
        return "rows" if rows_cost < columns_cost else "columns"
    if product == "vnni":
        return "rows" if weights <= cpu.l1d_kib * 1024 else "columns"
    return "rows" if weights <= inputs else "columns"


def _pays_to_parallelize(workload: IntegerMatmulWorkload, product: ProductName, cpu: Cpu) -> bool:
    per_instruction = {"sdot": 16, "smmla": 32, "mlal": 6, "vnni": 4, "pairs": 1, "plain": 0.3}
    products = per_instruction[product] * (cpu.lanes("int32") if product in _WIDE else 1)
    cycles = max(workload.macs / products / cpu.fma_units, workload.bytes / CACHE_BYTES_PER_CYCLE)
    return cpu.cores > 1 and cycles * (1 - 1 / cpu.cores) > LAUNCH_CYCLES


_WIDE = ("vnni", "pairs", "plain")


# -- weights ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedWeights:
    """What a kernel reads beside its input, laid out for a plan."""

    plan: IntegerMatmulPlan
    """The plan, with `sums` lowered where too many weights would have to be split."""
    weights: np.ndarray
    """int8, flat."""
    bias: np.ndarray
    """int32, for each column, those of empty lanes included."""
    scale: np.ndarray
    """float32, likewise."""
    rest: np.ndarray | None = None
    """int8, eight for each entry: what was taken from the weights for sums to fit in 16 bits."""
    places: np.ndarray | None = None
    """int32: where the entries of each column begin, one more, then the place in a packed tile that
    each is multiplied with."""

    @property
    def arrays(self) -> list[np.ndarray]:
        """The kernel's arguments between x and y."""
        found = [self.weights, self.bias, self.scale]
        if self.rest is None or self.places is None:
            return found
        return [*found, self.rest, self.places]


def pack_integer_matmul(
    weights: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    dtype: str,
    plan: IntegerMatmulPlan,
) -> PackedWeights:
    """Lay out int8 weights (depth, columns), int32 bias and float32 scale (columns,) for a plan.

    Where the instruction wants the other signedness than `dtype`, the difference is added to the
    bias. For `mlal`, weights whose sums would not fit into 16 bits are split.
    """
    wide = weights.astype(np.int64)
    wanted = _WANTED.get(plan.product, dtype)
    shift = {("uint8", "int8"): 128, ("int8", "uint8"): -128}.get((dtype, wanted), 0)
    bias = bias.astype(np.int64) + shift * wide.sum(axis=0)
    # Sums wrap at 32 bits, so that a bias may wrap as well.
    bias = bias.astype(np.uint64).astype(np.uint32).view(np.int32)
    vectors = math.ceil(weights.shape[1] / plan.lanes)
    empty = vectors * plan.lanes - weights.shape[1]
    padded = np.pad(weights, ((0, 0), (0, empty)))
    rest = places = None
    if plan.product == "mlal":
        plan, padded, rest, places = _split(padded, plan)
    packed = [
        _panel(padded[:, first : first + count * plan.lanes], plan)
        for first, count in plan.panels(weights.shape[1])
    ]
    return PackedWeights(
        plan,
        np.concatenate(packed),
        np.pad(bias, (0, empty)),
        np.pad(scale.astype(np.float32), (0, empty)),
        rest,
        places,
    )


_WANTED = {"sdot": "int8", "smmla": "int8", "mlal": "int8", "vnni": "uint8"}


_INT16_WEIGHTS = 255
"""Sum of |w| over products that are added up in 16 bits: 255 * 128 is below 32768, 256 is not."""


def _panel(weights: np.ndarray, plan: IntegerMatmulPlan) -> np.ndarray:
    """Return a panel (depth, columns) as (steps, columns, bytes of a step), flat."""
    depth = weights.shape[0]
    if plan.product != "mlal":
        return _steps(weights, plan.step)
    whole = math.ceil(depth / CHUNK) * CHUNK // plan.step * plan.step
    return np.concatenate([_steps(weights[:whole], plan.step), _steps(weights[whole:], CHUNK)])


def _steps(weights: np.ndarray, step: int) -> np.ndarray:
    depth, columns = weights.shape
    padded = np.pad(weights, ((0, -depth % step), (0, 0)))
    return padded.reshape(-1, step, columns).transpose(0, 2, 1).reshape(-1)


def _split(
    weights: np.ndarray, plan: IntegerMatmulPlan
) -> tuple[IntegerMatmulPlan, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Take from the weights what keeps sums of products from fitting into 16 bits.

    An entry costs about as much as summing two products instead of four saves for four columns;
    where there are more of them than that, two are summed.
    """
    if plan.sums == 4:
        main, rest, places = split_weights(weights, plan)
        chunks = math.ceil(len(weights) / plan.chunk) * math.ceil(weights.shape[1] / 4)
        if len(rest) // 8 <= _MOST_ENTRIES * chunks:
            return (plan, main, rest, places) if len(rest) else (plan, main, None, None)
        # Sums of two products leave no registers for two turns at once.
        plan = replace(plan, sums=2, unroll=1)
    main, rest, places = split_weights(weights, plan)
    return (plan, main, rest, places) if len(rest) else (plan, main, None, None)


_MOST_ENTRIES = 0.9
"""For each chunk of four columns: an entry takes some 20 instructions, sums of four products save
16 and a few registers."""


def split_weights(
    weights: np.ndarray, plan: IntegerMatmulPlan
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights whose sums fit into 16 bits, the entries of the rest, and their places.

    Products that are summed lie eight bytes apart. A sum fits for any int8 input if its weights'
    magnitudes add up to 255 at most; what is above is taken from the largest of them.
    """
    depth, columns = weights.shape
    whole = math.ceil(depth / CHUNK) * CHUNK // plan.chunk * plan.chunk
    main = np.pad(weights, ((0, -depth % CHUNK), (0, 0))).astype(np.int16)
    taken = np.zeros_like(main)
    parts = [(0, whole, plan.sums), (whole, len(main), min(plan.sums, 2))]
    for start, stop, sums in parts:
        if start == stop:
            continue
        # (groups, products of a sum, lanes, columns)
        group = main[start:stop].reshape(-1, sums, 8, columns)
        excess = np.abs(group).sum(axis=1) - _INT16_WEIGHTS
        # One product of eight lanes is one entry: take all from it if that is enough.
        enough = (np.abs(group) >= excess[:, None]).all(axis=2)
        first = np.argmax(enough, axis=1)[:, None, None, :] == np.arange(sums)[:, None, None]
        order = np.argsort(-np.abs(group) - 1000 * first, axis=1, kind="stable")
        out = np.zeros_like(group)
        for rank in range(sums):
            at = order[:, rank : rank + 1]
            value = np.take_along_axis(group, at, axis=1)[:, 0]
            cut = np.clip(excess, 0, np.abs(value))
            excess = excess - cut
            np.put_along_axis(out, at, (np.sign(value) * cut)[:, None], axis=1)
        taken[start:stop] = out.reshape(stop - start, columns)
    main -= taken
    eights = taken.reshape(-1, 8, columns)
    column, eight = np.nonzero(np.abs(eights).sum(axis=1).T)
    begins = np.searchsorted(column, np.arange(columns + 1)) + columns + 1
    # Where it lies in a packed tile, at its first row.
    place = 8 * eight // plan.chunk * (plan.chunk * plan.row_tile) + 8 * eight % plan.chunk
    places = np.concatenate([begins, place]).astype(np.int32)
    rest = eights[eight, :, column].astype(np.int8)
    return main.astype(np.int8), rest.reshape(-1), places


# -- the kernel ------------------------------------------------------------------------------


def write_integer_matmul(
    workload: IntegerMatmulWorkload,
    packed: PackedWeights,
    *,
    x_shape: tuple[int, ...] | None = None,
    y_shape: tuple[int, ...] | None = None,
) -> PrimFunc:
    """Write the kernel (x, w, bias, scale[, rest, places]) -> y, laid out as packed."""
    w = workload
    parameters = [
        Parameter("x", x_shape or (w.rows, w.depth), w.dtype),
        *weight_parameters(packed),
        Parameter(
            "y",
            y_shape or (w.rows, w.columns),
            w.requantize.dtype if w.requantize else "float32",
        ),
    ]

    def body(kernel: KernelWriter) -> None:
        write_product(kernel, w, packed.plan, Rows(kernel["x"], w.depth, w.depth))

    return write_kernel(w.dtype, parameters, body)


def weight_parameters(packed: PackedWeights) -> list[Parameter]:
    """Return the kernel's parameters for what `packed` holds."""
    found = [
        Parameter("w", packed.weights.shape, "int8"),
        Parameter("bias", packed.bias.shape, "int32"),
        Parameter("scale", packed.scale.shape, "float32"),
    ]
    if packed.rest is not None and packed.places is not None:
        found.append(Parameter("rest", packed.rest.shape, "int8"))
        found.append(Parameter("places", packed.places.shape, "int32"))
    return found


def write_product(
    kernel: KernelWriter, workload: IntegerMatmulWorkload, plan: IntegerMatmulPlan, source: Rows
) -> None:
    """Write the pass over the rows, where one is needed, and the product of what it made."""
    rows, tile_rows = workload.rows, plan.row_tile
    dtype = source.memory.dtype
    vectors = math.ceil(workload.columns / plan.lanes)
    remainder = Remainder(kernel.get("rest"), kernel.get("places"), vectors * plan.lanes + 1)
    product = make_product(plan, source, kernel["w"], remainder)
    full, rest = divmod(rows, tile_rows)
    packed = source.memory
    layout = product.layout
    if not isinstance(layout, PlainRows) or layout.dtype != dtype:
        packed = kernel.scratch(layout.elements(rows), layout.dtype)
        with task_loop(full, plan.is_parallel) as tile:
            layout.pack(source, tile * tile_rows, packed, tile, tile_rows)
        if rest:
            layout.pack(source, full * tile_rows, packed, full, rest)
    Tiles(kernel, workload, plan, product.tile).write(packed, by_row=isinstance(layout, PlainRows))
