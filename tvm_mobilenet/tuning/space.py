"""The plans that a search may try for a workload: where it starts, what it may change, what not.

A space is what each field may be, one dimension a group of fields that only make sense together
(rows and vectors of a register tile). The computed plan is its first member. What `plan_fault`
refuses is never built, and never taken from a log.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.convolution import ConvPlan, plan_conv
from tvm_mobilenet.schedule.depthwise import DepthwisePlan, plan_depthwise
from tvm_mobilenet.schedule.emit import split_lanes
from tvm_mobilenet.schedule.matmul import MatmulPlan
from tvm_mobilenet.schedule.matmul import plan_matmul as _plan_matmul
from tvm_mobilenet.schedule.pool import PoolPlan, plan_pool
from tvm_mobilenet.schedule.register_tile import register_tiles
from tvm_mobilenet.schedule.separable import ApartPlan, SeparablePlan, packs_pair
from tvm_mobilenet.schedule.separable import plan_separable as _plan_separable
from tvm_mobilenet.schedule.threads import pays_to_parallelize
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.records import Plan, canonical, plan_to_json

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["Space", "plan_fault"]

_SCRATCH_BYTES = 8 << 20
"""More than any core's cache by far: such a block is no block."""
_SPREADS = (0, 1, 2, 4)
"""Vectors by which the scratch rows of a pair may be spread apart."""
_FREE: Mapping[type, frozenset[str]] = {
    MatmulPlan: frozenset({"row_tile", "column_vectors", "outer", "is_parallel"}),
    DepthwisePlan: frozenset(
        {"column_tile", "channel_vectors", "row_block", "channel_block", "is_parallel"}
    ),
    ConvPlan: frozenset({"column_tile", "channel_vectors", "is_parallel"}),
    PoolPlan: frozenset({"chains", "is_parallel"}),
    SeparablePlan: frozenset(
        {"row_block", "is_parallel", "scratch_stride", "depthwise", "pointwise"}
    ),
    ApartPlan: frozenset({"depthwise", "pointwise"}),
}
"""What a search may change. A field that is not here is part of how kernels are written for a
processor, and must be as computed."""

Change = dict[str, Any]

# A plan is checked against the computed one, and thousands are checked for one workload.
plan_matmul = functools.lru_cache(maxsize=4096)(_plan_matmul)
plan_separable = functools.lru_cache(maxsize=256)(_plan_separable)


@dataclass(frozen=True)
class Space:
    """All plans for one workload on one processor.

    With `is_split_free` false nothing decides about threads: one thread that measures cannot judge
    how work is cut among several.
    """

    workload: TunableWorkload
    cpu: Cpu
    is_split_free: bool = True

    @property
    def start(self) -> Plan:
        """The computed plan; for a pair that is not worth fusing, two."""
        w, cpu = self.workload, self.cpu
        if isinstance(w, SeparableWorkload):
            return plan_separable(w, cpu) or _apart(w, cpu)
        if isinstance(w, MatmulWorkload):
            return plan_matmul(w, cpu)
        if isinstance(w, PoolWorkload):
            return plan_pool(w, cpu)
        return plan_depthwise(w, cpu) if w.is_depthwise else plan_conv(w, cpu)

    def seeds(self) -> list[Plan]:
        """Return the start and the other choices that are as good a guess as any."""
        start = self.start
        seeds = [start]
        if isinstance(self.workload, SeparableWorkload):
            if not isinstance(start, ApartPlan):
                seeds.append(_apart(self.workload, self.cpu))
            if not packs_pair(self.workload, self.cpu):
                rows = self.workload.depthwise.out_height
                blocks = sorted({math.ceil(rows / parts) for parts in (2, 4, 8)})
                seeds += [_fused(self.workload, self.cpu, block) for block in blocks]
        return list(self._usable(seeds))

    def neighbours(self, plan: Plan) -> list[Plan]:
        """Return the plans that differ from `plan` in one dimension."""
        return list(_neighbours(self, plan))

    def step(self, plan: Plan, rng: random.Random) -> Plan | None:
        """Return a plan that differs from `plan` in one dimension, or None by bad luck."""
        path, changes = rng.choice([d for d in self._dimensions(plan) if d[1]])
        return next(self._usable([_changed(plan, path, rng.choice(changes))]), None)

    def normal(self, plan: Plan) -> Plan:
        """Return the one spelling of all plans that give the same kernel."""
        start = self.start
        w = self.workload
        if isinstance(plan, SeparablePlan) and plan.pointwise.packs_rows:
            return plan
        if isinstance(plan, SeparablePlan) and isinstance(w, SeparableWorkload):
            # A task has no threads of its own, and all its rows.
            model = start if isinstance(start, SeparablePlan) else _fused(w, self.cpu, 1)
            assert isinstance(model, SeparablePlan)
            block = replace(w.pointwise, rows=plan.row_block * w.depthwise.out_width)
            depthwise = replace(
                plan.depthwise,
                row_block=model.depthwise.row_block,
                channel_block=model.depthwise.channel_block,
                is_parallel=model.depthwise.is_parallel,
            )
            pointwise = replace(plan.pointwise, is_parallel=model.pointwise.is_parallel)
            return replace(
                plan,
                depthwise=_normal_depthwise(w.depthwise, depthwise),
                pointwise=_normal_matmul(block, pointwise),
            )
        if isinstance(plan, ApartPlan) and isinstance(w, SeparableWorkload):
            return ApartPlan(
                depthwise=_normal_depthwise(w.depthwise, plan.depthwise),
                pointwise=_normal_matmul(w.pointwise, plan.pointwise),
            )
        if isinstance(plan, MatmulPlan) and isinstance(w, MatmulWorkload):
            return _normal_matmul(w, plan)
        if isinstance(plan, DepthwisePlan) and isinstance(w, ConvWorkload):
            return _normal_depthwise(w, plan)
        return plan

    def _usable(self, plans: Iterator[Plan] | list[Plan]) -> Iterator[Plan]:
        """Yield the plans without fault, each once."""
        seen = set()
        for plan in plans:
            normal = self.normal(plan)
            key = canonical(plan_to_json(normal))
            if key not in seen and plan_fault(self.workload, normal, self.cpu) is None:
                seen.add(key)
                yield normal

    def _dimensions(self, plan: Plan) -> Iterator[tuple[tuple[str, ...], list[Change]]]:
        w, cpu = self.workload, self.cpu
        if isinstance(w, SeparableWorkload):
            yield from self._pair_dimensions(w, plan)
        elif isinstance(plan, MatmulPlan) and isinstance(w, MatmulWorkload):
            yield from _at((), self._matmul(w, plan))
        elif isinstance(plan, DepthwisePlan) and isinstance(w, ConvWorkload):
            yield from _at((), self._depthwise(w, plan))
        elif isinstance(plan, ConvPlan) and isinstance(w, ConvWorkload):
            tiles = [
                {"column_tile": tile.rows, "channel_vectors": tile.vectors}
                for tile in register_tiles(cpu)
                if tile.rows <= w.out_width
            ]
            yield (), [] if plan.by_lane else tiles
            yield (), self._split()
        else:
            assert isinstance(w, PoolWorkload)
            yield (), [{"chains": n} for n in range(1, min(16, w.pixels) + 1)]
            yield (), self._split()

    def _pair_dimensions(
        self, w: SeparableWorkload, plan: Plan
    ) -> Iterator[tuple[tuple[str, ...], list[Change]]]:
        if isinstance(plan, ApartPlan):
            yield from _at(("depthwise",), self._depthwise(w.depthwise, plan.depthwise))
            yield from _at(("pointwise",), self._matmul(w.pointwise, plan.pointwise))
            return
        assert isinstance(plan, SeparablePlan)
        if plan.pointwise.packs_rows:
            yield (), self._split()
            return
        yield (), [{"row_block": rows} for rows in range(1, w.depthwise.out_height + 1)]
        lanes = plan.pointwise.lanes
        yield (), [{"scratch_stride": w.depthwise.out_channels + n * lanes} for n in _SPREADS]
        yield (), self._split()
        block = replace(w.pointwise, rows=plan.row_block * w.depthwise.out_width)
        tiles, outer, _ = self._matmul(block, plan.pointwise)
        yield ("pointwise",), tiles
        yield ("pointwise",), outer
        yield ("depthwise",), self._depthwise(w.depthwise, plan.depthwise)[0]

    def _matmul(self, w: MatmulWorkload, plan: MatmulPlan) -> list[list[Change]]:
        tiles = [
            {"row_tile": tile.rows, "column_vectors": tile.vectors}
            for tile in register_tiles(self.cpu)
            if tile.rows <= w.rows
        ]
        return [
            [] if plan.packs_rows else tiles,
            [{"outer": "rows"}, {"outer": "columns"}],
            self._split(),
        ]

    def _depthwise(self, w: ConvWorkload, plan: DepthwisePlan) -> list[list[Change]]:
        pieces = len(split_lanes(w.in_channels, plan.lanes))
        tiles = [
            {"column_tile": columns, "channel_vectors": vectors}
            for vectors in range(1, min(pieces, 8) + 1)
            for columns in range(1, min(w.out_width, 16) + 1)
        ]
        full = w.in_channels // (plan.lanes * plan.channel_vectors)
        blocks = [0, *(n for n in range(1, full) if full % n == 0)]
        rows = [{"row_block": rows} for rows in range(1, w.out_height + 1)]
        return [
            [] if plan.row_tile else tiles,
            [] if plan.row_tile else rows,
            [{"channel_block": block} for block in blocks],
            self._split(),
        ]

    def _split(self) -> list[Change]:
        is_free = self.is_split_free and self.cpu.cores > 1
        return [{"is_parallel": True}, {"is_parallel": False}] if is_free else []


@functools.lru_cache(maxsize=256)
def _neighbours(space: Space, plan: Plan) -> tuple[Plan, ...]:
    return tuple(
        space._usable(
            _changed(plan, path, change)
            for path, changes in space._dimensions(plan)
            for change in changes
        )
    )


def _at(
    path: tuple[str, ...], dimensions: list[list[Change]]
) -> Iterator[tuple[tuple[str, ...], list[Change]]]:
    return ((path, changes) for changes in dimensions)


def _changed(plan: Any, path: tuple[str, ...], change: Change) -> Any:
    if not path:
        return replace(plan, **change)
    part = path[0]
    return replace(plan, **{part: _changed(getattr(plan, part), path[1:], change)})


def _apart(w: SeparableWorkload, cpu: Cpu) -> ApartPlan:
    return ApartPlan(
        depthwise=plan_depthwise(w.depthwise, cpu), pointwise=plan_matmul(w.pointwise, cpu)
    )


@functools.lru_cache(maxsize=4096)
def _fused(w: SeparableWorkload, cpu: Cpu, row_block: int) -> SeparablePlan:
    """Return a fused plan with that many rows a task, the rest as it would be computed for it.

    Only for pairs whose rows are not packed.
    """
    computed = plan_separable(w, cpu)
    lanes = cpu.lanes(w.dtype)
    channels = w.depthwise.out_channels
    stride = channels + (lanes if channels * 4 % 256 == 0 else 0)
    block = replace(w.pointwise, rows=row_block * w.depthwise.out_width)
    pointwise = replace(plan_matmul(block, cpu, row_bytes=stride * 4), outer="columns")
    if computed is not None:
        return replace(computed, row_block=row_block, pointwise=pointwise)
    return SeparablePlan(
        row_block=row_block,
        is_parallel=pays_to_parallelize(w, cpu),
        scratch_stride=stride,
        depthwise=plan_depthwise(w.depthwise, cpu),
        pointwise=pointwise,
    )


def _normal_matmul(w: MatmulWorkload, plan: MatmulPlan) -> MatmulPlan:
    pieces = len(split_lanes(w.columns, plan.lanes))
    return replace(plan, column_vectors=min(plan.column_vectors, pieces))


def _normal_depthwise(w: ConvWorkload, plan: DepthwisePlan) -> DepthwisePlan:
    """Cut what exceeds the workload; blocks that do not divide the panels are written as one."""
    pieces = len(split_lanes(w.in_channels, plan.lanes))
    vectors = min(plan.channel_vectors, pieces)
    full = w.in_channels // (plan.lanes * vectors)
    block = plan.channel_block
    if block >= full or (block and full % block):
        block = 0
    return replace(plan, channel_vectors=vectors, channel_block=block)


# -- what cannot be used ----------------------------------------------------------------------


def plan_fault(workload: TunableWorkload, plan: Plan, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used for a workload on a processor, or None.

    Kernels index memory by their plan: one that does not fit its workload would write outside of
    its output, so whatever comes from a file passes here first.
    """
    if isinstance(workload, SeparableWorkload):
        return _pair_fault(workload, plan, cpu)
    if isinstance(workload, MatmulWorkload):
        return _kind_fault(plan, MatmulPlan) or _matmul_fault(workload, plan, cpu)
    if isinstance(workload, PoolWorkload):
        return (
            _kind_fault(plan, PoolPlan)
            or _frozen_fault(plan, plan_pool(workload, cpu))
            or _range_fault("chains", plan.chains, min(16, workload.pixels))  # type: ignore[union-attr]
        )
    if workload.is_depthwise:
        return _kind_fault(plan, DepthwisePlan) or _depthwise_fault(workload, plan, cpu)
    return _kind_fault(plan, ConvPlan) or _conv_fault(workload, plan, cpu)


def _pair_fault(w: SeparableWorkload, plan: Plan, cpu: Cpu) -> str | None:
    if isinstance(plan, ApartPlan):
        return _depthwise_fault(w.depthwise, plan.depthwise, cpu) or _matmul_fault(
            w.pointwise, plan.pointwise, cpu
        )
    if not isinstance(plan, SeparablePlan):
        return _kind_fault(plan, SeparablePlan)
    if packs_pair(w, cpu) or plan.pointwise.packs_rows:
        computed = plan_separable(w, cpu)
        if computed is not None and plan == replace(computed, is_parallel=plan.is_parallel):
            return None
        return "a pair with packed rows must be as computed"
    channels, height = w.depthwise.out_channels, w.depthwise.out_height
    fault = _range_fault("row_block", plan.row_block, height)
    if fault is not None:
        return fault
    most = channels + max(_SPREADS) * plan.pointwise.lanes
    if not channels <= plan.scratch_stride <= most:
        return f"scratch_stride {plan.scratch_stride} is not in {channels} to {most}"
    rows = plan.row_block * w.depthwise.out_width
    if rows * plan.scratch_stride * 4 > _SCRATCH_BYTES:
        return f"row_block {plan.row_block} needs more than {_SCRATCH_BYTES >> 20} MiB of scratch"
    block = replace(w.pointwise, rows=rows)
    return (
        _depthwise_fault(w.depthwise, plan.depthwise, cpu)
        or _frozen_fault(plan, _fused(w, cpu, plan.row_block))
        or _matmul_fault(block, plan.pointwise, cpu, row_bytes=plan.scratch_stride * 4)
    )


def _matmul_fault(
    w: MatmulWorkload, plan: Any, cpu: Cpu, *, row_bytes: int | None = None
) -> str | None:
    computed = plan_matmul(w, cpu, row_bytes=row_bytes)
    fault = _frozen_fault(plan, computed)
    if fault is not None:
        return fault
    if plan.packs_rows:
        return _tile_fault(plan, computed, ("row_tile", "column_vectors"))
    fault = _range_fault("row_tile", plan.row_tile, w.rows)
    if fault is not None:
        return fault
    if plan.column_vectors < 1:
        return f"column_vectors {plan.column_vectors} is below 1"
    operands = plan.row_tile + 2 if plan.by_lane else plan.column_vectors + 1
    return _register_fault(plan.row_tile * plan.column_vectors + operands, cpu)


def _depthwise_fault(w: ConvWorkload, plan: Any, cpu: Cpu) -> str | None:
    computed = plan_depthwise(w, cpu)
    fault = _frozen_fault(plan, computed)
    if fault is not None:
        return fault
    if plan.row_tile:
        vectors = w.in_channels // plan.lanes
        if plan.channel_block < 0 or (plan.channel_block and vectors % plan.channel_block):
            return f"channel_block {plan.channel_block} does not divide {vectors} vectors"
        return _tile_fault(plan, computed, ("column_tile", "channel_vectors", "row_block"))
    fault = _range_fault("column_tile", plan.column_tile, w.out_width) or _range_fault(
        "row_block", plan.row_block, w.out_height
    )
    if fault is not None:
        return fault
    if plan.channel_vectors < 1 or plan.channel_block < 0:
        return "channel_vectors or channel_block is below its least"
    return _register_fault(plan.column_tile * plan.channel_vectors + 2, cpu)


def _conv_fault(w: ConvWorkload, plan: Any, cpu: Cpu) -> str | None:
    computed = plan_conv(w, cpu)
    fault = _frozen_fault(plan, computed)
    if fault is not None:
        return fault
    if plan.by_lane:
        return _tile_fault(plan, computed, ("column_tile", "channel_vectors"))
    fault = _range_fault("column_tile", plan.column_tile, w.out_width)
    if fault is not None:
        return fault
    if plan.channel_vectors < 1:
        return f"channel_vectors {plan.channel_vectors} is below 1"
    return _register_fault(plan.channel_vectors * (plan.column_tile + 1) + 1, cpu)


def _tile_fault(plan: Any, computed: Any, names: tuple[str, ...]) -> str | None:
    """Compare a tile that is bound up with how its operands are packed or loaded."""
    for name in names:
        found, expected = getattr(plan, name), getattr(computed, name)
        if found != expected:
            return f"{name} is {found}, a tile bound up with packing must be as computed"
    return None


def _kind_fault(plan: Plan, kind: type) -> str | None:
    if isinstance(plan, kind):
        return None
    return f"a {type(plan).__name__} is no plan for this family"


def _range_fault(name: str, value: int, most: int) -> str | None:
    return None if 1 <= value <= most else f"{name} {value} is not in 1 to {most}"


def _register_fault(needed: int, cpu: Cpu) -> str | None:
    if needed <= cpu.vector_registers:
        return None
    return f"the tile needs {needed} registers, there are {cpu.vector_registers}"


def _frozen_fault(plan: Any, computed: Any) -> str | None:
    """Compare the fields that no search may change."""
    free = _FREE[type(plan)]
    for field in fields(plan):
        found, expected = getattr(plan, field.name), getattr(computed, field.name)
        if field.name not in free and found != expected:
            return f"{field.name} is {found}, for this processor it is {expected}"
    return None
