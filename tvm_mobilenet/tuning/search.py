"""Which plans to try next: neighbours of the best ones, in the order that a learnt model says.

The spaces are small, a few hundred to a few thousand plans, and their computed start is good: what
helps is to step from the best plans so far in one or two dimensions, and to leave out what
resembles plans that were slow. The model learns from every task at once, each time set against
its own computed plan's, so that a task begins with what others have shown.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_mobilenet.schedule.cascade import CascadePlan
from tvm_mobilenet.schedule.convolution import ConvPlan
from tvm_mobilenet.schedule.depthwise import DepthwisePlan
from tvm_mobilenet.schedule.gated import GatedPlan
from tvm_mobilenet.schedule.integer.workload import IntegerWorkload
from tvm_mobilenet.schedule.mali.families import GpuPlan
from tvm_mobilenet.schedule.matmul import MatmulPlan
from tvm_mobilenet.schedule.pool import PoolPlan
from tvm_mobilenet.schedule.register_tile import column_panels, tile_cycles
from tvm_mobilenet.schedule.separable import ApartPlan, SeparablePlan
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.gpu_space import gpu_features
from tvm_mobilenet.tuning.integer_features import integer_features
from tvm_mobilenet.tuning.integer_kernels import IntegerPlan
from tvm_mobilenet.tuning.records import Plan, canonical, plan_to_json
from tvm_mobilenet.tuning.target_space import AnySpace

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["CostModel", "features", "plan_key", "propose"]

_PARENTS = 3
_FAR_STEPS = 60
"""Plans two steps away that are looked at beside the neighbours."""
_EXPLORE = 4
"""One candidate in so many is taken at random, whatever the model says."""
_LEAST_ROWS = 16
_MOST_ROWS = 4000
_TREES = 50


_FEATURES = 32


def plan_key(plan: Plan) -> str:
    """Return the text by which equal plans are known."""
    return canonical(plan_to_json(plan))


def propose(
    space: AnySpace,
    best: Sequence[Plan],
    known: set[str],
    count: int,
    model: CostModel,
    rng: random.Random,
) -> list[Plan]:
    """Return up to `count` plans that are not known yet; none when the space is used up.

    Args:
        space: where to look.
        best: the best plans so far, the best first.
        known: keys of the plans that were measured or rejected.
        count: how many are wanted.
        model: ranks what is found.
        rng: breaks ties.
    """
    pool: dict[str, Plan] = {}

    def add(plans: Sequence[Plan]) -> None:
        for plan in plans:
            key = plan_key(plan)
            if key not in known:
                pool.setdefault(key, plan)

    add(space.seeds())
    seeds = list(pool.values())[:count]
    parents = list(best[:_PARENTS]) or [space.start]
    near = [neighbour for parent in parents for neighbour in space.neighbours(parent)]
    add(near)
    for _ in range(_FAR_STEPS if near else 0):
        further = space.step(rng.choice(near), rng)
        add([] if further is None else [further])
    rest = [plan for key, plan in pool.items() if plan not in seeds]
    rng.shuffle(rest)
    ranked = model.rank(space.workload, rest)
    wanted = max(0, count - len(seeds))
    explored = wanted // _EXPLORE if len(ranked) > wanted else 0
    chosen = ranked[: wanted - explored]
    others = ranked[wanted - explored :]
    return [*seeds, *chosen, *rng.sample(others, min(explored, len(others)))]


class CostModel:
    """Predicts how a plan compares with the computed one of its workload."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._rows: list[list[float]] = []
        self._costs: list[float] = []
        self._trained_on = 0
        self._trees: Any = None

    def add(self, workload: TunableWorkload, plan: Plan, ratio: float) -> None:
        """Learn that a plan took `ratio` times what the computed one does."""
        self._rows.append(features(workload, plan, self._cpu))
        self._costs.append(math.log(max(0.1, min(10.0, ratio))))

    def rank(self, workload: TunableWorkload, plans: list[Plan]) -> list[Plan]:
        """Return the plans, the most promising first; as they are while too little is known."""
        self._train()
        if self._trees is None or not plans:
            return plans
        rows = np.asarray([features(workload, plan, self._cpu) for plan in plans])
        order = np.argsort(self._trees.predict(rows), kind="stable")
        return [plans[index] for index in order]

    def _train(self) -> None:
        if len(self._rows) < _LEAST_ROWS or len(self._rows) < 1.1 * self._trained_on:
            return
        from sklearn.ensemble import ExtraTreesRegressor

        rows, costs = self._rows[-_MOST_ROWS:], self._costs[-_MOST_ROWS:]
        self._trees = ExtraTreesRegressor(_TREES, min_samples_leaf=2, random_state=0, n_jobs=1)
        self._trees.fit(np.asarray(rows), np.asarray(costs))
        self._trained_on = len(self._rows)


def features(workload: TunableWorkload, plan: Plan, cpu: Cpu) -> list[float]:
    """Return what a plan's speed may depend on, as numbers."""
    if isinstance(plan, GpuPlan):
        return gpu_features(workload, plan)
    if isinstance(workload, IntegerWorkload):
        assert isinstance(plan, IntegerPlan)
        found = integer_features(workload, plan, cpu)
        return found + [0.0] * (_FEATURES - len(found))
    if isinstance(workload, SeparableWorkload):
        if isinstance(plan, ApartPlan):
            return [
                *_common(workload),
                1,
                *([0.0] * 5),
                *_depthwise(workload.depthwise, plan.depthwise, cpu),
                *_matmul(workload.pointwise, plan.pointwise, cpu),
            ]
        assert isinstance(plan, SeparablePlan)
        w = workload.depthwise
        rows = plan.row_block * w.out_width
        blocks = math.ceil(w.out_height / plan.row_block)
        block = MatmulWorkload(
            rows=rows, depth=workload.pointwise.depth, columns=workload.pointwise.columns
        )
        return [
            *_common(workload),
            2,
            plan.row_block,
            blocks * plan.row_block / w.out_height,
            _imbalance(w.batch * blocks, cpu.cores),
            math.log2(rows * plan.scratch_stride),
            plan.scratch_stride - w.out_channels,
            *_depthwise(w, plan.depthwise, cpu),
            *_matmul(block, plan.pointwise, cpu),
        ]
    if isinstance(plan, CascadePlan):
        assert isinstance(workload, CascadeWorkload)
        return _cascade(workload, plan, cpu)
    nothing = [0.0] * 5
    if isinstance(plan, GatedPlan):
        assert isinstance(workload, GatedWorkload)
        product = workload.pointwise
        image_rows = product.rows // workload.batch
        blocks = math.ceil(image_rows / plan.row_block)
        task = MatmulWorkload(rows=plan.row_block, depth=product.depth, columns=product.columns)
        return [
            *_common(workload),
            7,
            plan.row_block,
            blocks * plan.row_block / image_rows,
            _imbalance(workload.batch * blocks, cpu.cores),
            math.log2(plan.row_block * plan.scratch_stride),
            plan.scratch_stride - product.depth,
            *_NO_DEPTHWISE,
            *_matmul(task, plan.pointwise, cpu),
        ]
    if isinstance(plan, MatmulPlan):
        assert isinstance(workload, MatmulWorkload)
        parts = [*_NO_DEPTHWISE, *_matmul(workload, plan, cpu)]
        return [*_common(workload), 3, *nothing, *parts]
    if isinstance(plan, DepthwisePlan):
        assert isinstance(workload, ConvWorkload)
        parts = [*_depthwise(workload, plan, cpu), *_NO_MATMUL]
        return [*_common(workload), 4, *nothing, *parts]
    if isinstance(plan, ConvPlan):
        assert isinstance(workload, ConvWorkload)
        waste = math.ceil(workload.out_width / plan.column_tile) * plan.column_tile
        conv = [
            plan.column_tile,
            plan.channel_vectors,
            waste / workload.out_width,
            float(plan.is_parallel),
            0.0,
        ]
        return [*_common(workload), 5, *conv, *_NO_DEPTHWISE, *_NO_MATMUL]
    assert isinstance(plan, PoolPlan)
    pool = [plan.chains, float(plan.is_parallel), 0.0, 0.0, 0.0]
    return [*_common(workload), 6, *pool, *_NO_DEPTHWISE, *_NO_MATMUL]


def _cascade(workload: CascadeWorkload, plan: CascadePlan, cpu: Cpu) -> list[float]:
    """Return the features of a cascade: of its tiles what they waste and how large they are."""
    last = workload.stages[-1]
    blocks = math.ceil(last.out_height / plan.row_block)
    tiles = list(zip(workload.stages, plan.tiles, strict=True))
    return [
        *_common(workload),
        8,
        plan.row_block,
        blocks * plan.row_block / last.out_height,
        _imbalance(last.batch * blocks, cpu.cores),
        sum(w.macs * math.ceil(w.out_width / t.rows) * t.rows / w.out_width for w, t in tiles)
        / workload.macs,
        sum(w.macs * t.rows * t.vectors for w, t in tiles) / workload.macs,
        *_NO_DEPTHWISE,
        *_NO_MATMUL,
    ]


def _common(workload: TunableWorkload) -> list[float]:
    return [math.log2(1 + workload.macs), math.log2(workload.bytes)]


def _matmul(w: MatmulWorkload, plan: MatmulPlan, cpu: Cpu) -> list[float]:
    panels = column_panels(w.columns, plan.lanes, plan.column_vectors)
    row_tiles = math.ceil(w.rows / plan.row_tile)
    cycles = row_tiles * sum(
        tile_cycles(plan.row_tile, len(panel.vectors), w.depth, cpu) for panel in panels
    )
    tasks = row_tiles if plan.outer == "rows" else len(panels)
    return [
        plan.row_tile,
        plan.column_vectors,
        plan.row_tile * plan.column_vectors,
        row_tiles * plan.row_tile / w.rows,
        len(panels) * plan.column_vectors * plan.lanes / w.columns,
        math.log2(cycles) - math.log2(w.macs / plan.lanes / cpu.fma_units),
        float(plan.outer == "rows"),
        float(plan.is_parallel),
        _imbalance(tasks, cpu.cores),
        math.log2(w.depth),
        math.log2(w.depth * w.columns),
        plan.depth_step,
        float(plan.in_assembly),
        float(plan.prefetches),
    ]


def _depthwise(w: ConvWorkload, plan: DepthwisePlan, cpu: Cpu) -> list[float]:
    blocks = math.ceil(w.out_height / plan.row_block)
    panels = max(1, w.in_channels // (plan.lanes * plan.channel_vectors))
    tasks = w.batch * blocks * (panels // plan.channel_block if plan.channel_block else 1)
    return [
        plan.column_tile,
        plan.channel_vectors,
        plan.column_tile * plan.channel_vectors,
        math.ceil(w.out_width / plan.column_tile) * plan.column_tile / w.out_width,
        blocks * plan.row_block / w.out_height,
        plan.channel_block / panels,
        float(plan.is_parallel),
        _imbalance(tasks, cpu.cores),
        math.log2(w.in_channels),
        w.stride[0],
        plan.row_tile,
    ]


_NO_MATMUL = [0.0] * 14
_NO_DEPTHWISE = [0.0] * 11


def _imbalance(tasks: int, cores: int) -> float:
    return math.ceil(tasks / cores) * cores / tasks - 1
