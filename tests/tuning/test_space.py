"""Every plan that a space offers computes what numpy does, and no other plan gets through."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.schedule.test_kernels import runnable_here
from tests.tuning.conftest import DEPTHWISE, MATMUL, RELU6
from tvm_mobilenet._tvm import tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.separable import ApartPlan, SeparablePlan
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
)
from tvm_mobilenet.targets import TargetSpec, list_targets, load_target
from tvm_mobilenet.tuning.kernels import calls, kernel_module
from tvm_mobilenet.tuning.records import (
    LineError,
    plan_from,
    plan_to_json,
    workload_from,
    workload_to_json,
)
from tvm_mobilenet.tuning.reference import largest_error, make_operands, reference, spoilt
from tvm_mobilenet.tuning.search import CostModel, features, plan_key, propose
from tvm_mobilenet.tuning.space import Space, plan_fault

PAIR = SeparableWorkload(depthwise=DEPTHWISE, pointwise=MATMUL)
STEM = ConvWorkload(
    batch=1,
    height=17,
    width=17,
    in_channels=3,
    out_channels=12,
    kernel=(3, 3),
    stride=(2, 2),
    padding=(1, 1, 1, 1),
    input_layout="NCHW",
    epilogue=RELU6,
)
WORKLOADS: dict[str, Any] = {
    "matmul": replace(MATMUL, epilogue=replace(RELU6, residual=True)),
    "hard-swish": replace(MATMUL, epilogue=Epilogue(bias=True, activation="hard-swish")),
    "odd": MatmulWorkload(rows=5, depth=7, columns=9),
    "depthwise": DEPTHWISE,
    "strided": replace(
        DEPTHWISE, height=9, width=8, stride=(2, 2), in_channels=40, out_channels=40, groups=40
    ),
    "pair": PAIR,
    "batch": SeparableWorkload(
        depthwise=replace(DEPTHWISE, batch=2), pointwise=replace(MATMUL, rows=98)
    ),
    "wide": SeparableWorkload(
        depthwise=replace(
            DEPTHWISE, height=28, width=28, in_channels=64, out_channels=64, groups=64
        ),
        pointwise=MatmulWorkload(rows=784, depth=64, columns=64, epilogue=RELU6),
    ),
    "five": replace(
        DEPTHWISE, height=28, width=28, kernel=(5, 5), padding=(2, 2, 2, 2), epilogue=Epilogue()
    ),
    "stem": STEM,
    "pool": PoolWorkload(batch=1, pixels=13, channels=20),
    "cascade": CascadeWorkload(
        stages=(
            replace(STEM, epilogue=RELU6),
            replace(DEPTHWISE, height=9, width=9, in_channels=12, out_channels=12, groups=12),
        )
    ),
    "gated": GatedWorkload(
        batch=2, pointwise=MatmulWorkload(rows=50, depth=20, columns=24, epilogue=RELU6)
    ),
}
LARGE = ("batch", "five", "wide")
COMPUTED = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in WORKLOADS]
TARGETS = [name for name in list_targets() if name != "host" and load_target(name).gpu is None]


def compute(workload: Any, plan: Any, target: TargetSpec) -> tuple[np.ndarray, np.ndarray]:
    operands = make_operands(workload)
    with lowering():
        library = tvm.compile(kernel_module(workload, plan), target=target.tvm_target())
    expected = reference(workload, operands)
    written = None
    for call in calls(workload, plan, operands):
        inputs = [written if a is None else tvm.runtime.tensor(a) for a in call.inputs]
        last = None if call.dtype == "float32" else expected
        written = tvm.runtime.tensor(spoilt(call.shape, last))
        library[call.symbol](*inputs, written)
    assert written is not None
    return written.numpy().reshape(expected.shape), expected


@pytest.mark.parametrize("name", COMPUTED)
def test_plans_of_the_space_compute_the_workload(name: str, host: TargetSpec):
    workload, rng = WORKLOADS[name], random.Random(1)
    space = Space(workload, host.cpu)
    plan = space.start
    for step in range(4):
        found, expected = compute(workload, plan, host)
        assert largest_error(found, expected) >= 0, plan
        assert expected.std() > 0.1, "operands that show nothing"
        if step == 0 and isinstance(workload, SeparableWorkload):
            plan = next(s for s in space.seeds() if type(s) is not type(plan))
        else:
            plan = rng.choice(space.neighbours(plan))


@pytest.mark.parametrize("name", COMPUTED)
def test_so_do_plans_that_multiply_by_lane(name: str, host: TargetSpec):
    """Written for another processor, they are no faster here, but what they compute is the same."""
    workload, cpu = WORKLOADS[name], runnable_here(load_target("rpi4").cpu)
    space = Space(workload, cpu)
    others = space.neighbours(space.start)
    for plan in (space.start, *space.seeds()[1:2], *others[-1:]):
        found, expected = compute(workload, plan, host)
        assert largest_error(found, expected) >= 0, plan


def test_tiles_of_an_arm_processor_are_searched():
    cpu = load_target("rpi4").cpu
    free = {
        "matmul": {"row_tile", "column_vectors", "depth_step", "outer", "is_parallel"},
        "depthwise": {"row_tile", "column_tile", "row_block", "channel_block", "is_parallel"},
        "stem": {"column_tile", "channel_vectors", "is_parallel"},
        "wide": {"row_block", "depthwise", "pointwise", "is_parallel"},
    }
    for name, fields in free.items():
        space = Space(WORKLOADS[name], cpu)
        start = plan_to_json(space.start)
        changed = {
            key
            for neighbour in space.neighbours(space.start)
            for key, value in plan_to_json(neighbour).items()
            if value != start[key]
        }
        assert changed >= fields, name
        assert changed <= fields | {"in_assembly"}, name


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("matmul", {"row_tile": 24, "column_vectors": 2}, "leaves no registers"),
        ("matmul", {"row_tile": 53}, "row_tile 53 is not in 1 to 52"),
        ("matmul", {"depth_step": 6}, "depth_step 6"),
        ("matmul", {"in_assembly": False, "depth_step": 12}, "does not divide 16 steps"),
        ("matmul", {"in_assembly": False, "row_tile": 8, "column_vectors": 4}, "registers"),
        ("odd", {"packs_rows": True}, "packs_rows is True"),
        ("depthwise", {"row_tile": 6, "row_block": 6, "column_tile": 7}, "exceeds 20 registers"),
        ("depthwise", {"row_block": 2}, "is not the tile's"),
        ("five", {"row_tile": 2, "row_block": 2}, "leave room for one row"),
        ("stem", {"column_tile": 1}, "less than 4 columns"),
        ("stem", {"column_tile": 9, "channel_vectors": 3}, "the tile needs"),
        ("wide", {"scratch_stride": 68}, "packed rows are not spread apart"),
    ],
)
def test_plans_that_do_not_fit_an_arm_processor_are_refused(
    name: str, change: dict[str, Any], says: str
):
    cpu, workload = load_target("rpi4").cpu, WORKLOADS[name]
    plan: Any = replace(Space(workload, cpu).start, **change)
    assert says in (plan_fault(workload, plan, cpu) or "")


def test_a_fused_pair_packs_whole_groups():
    """Four pixels are stored at once: neither a depthwise tile nor a packed one may cut them."""
    cpu, workload = load_target("rpi4").cpu, WORKLOADS["wide"]
    space = Space(workload, cpu)
    found: list[Any] = [*space.seeds(), *space.neighbours(space.start)]
    plans = [plan for plan in found if isinstance(plan, SeparablePlan)]
    assert len(plans) > 20
    assert {p.pointwise.row_tile % 4 for p in plans} == {0}
    assert {p.depthwise.column_tile % 4 for p in plans} == {0}
    plan: Any = plans[0]
    for changed, says in (
        (replace(plan, pointwise=replace(plan.pointwise, row_tile=7)), "no multiple of 4"),
        (replace(plan, depthwise=replace(plan.depthwise, column_tile=5)), "no multiple of 4"),
        (replace(plan, row_block=29), "row_block 29"),
    ):
        assert says in (plan_fault(workload, changed, cpu) or "")


def test_channels_that_no_task_would_compute_are_refused():
    cpu = load_target("rpi4").cpu
    start: Any = Space(DEPTHWISE, cpu).start
    plan = replace(start, channel_block=3)
    assert plan_fault(DEPTHWISE, plan, cpu) == "channel_block 3 does not divide 4 vectors"


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_computed_plan_comes_first_and_has_no_fault(name: str, target: str):
    cpu, workload = load_target(target).cpu, WORKLOADS[name]
    space = Space(workload, cpu)
    start = space.start
    assert plan_fault(workload, start, cpu) is None
    assert space.seeds()[0] == start
    assert workload_from(workload_to_json(workload)) == workload
    assert plan_from(plan_to_json(start)) == start
    for neighbour in space.neighbours(start):
        assert space.normal(neighbour) == neighbour
        assert plan_fault(workload, neighbour, cpu) is None


def test_fusing_a_pair_is_a_choice(host: TargetSpec):
    kinds = {type(plan) for plan in Space(PAIR, host.cpu).seeds()}
    assert kinds == {SeparablePlan, ApartPlan}


def test_one_thread_does_not_judge_how_work_is_cut(host: TargetSpec):
    cpu = host.cpu.model_copy(update={"cores": 4})
    start = Space(MATMUL, cpu).start
    cut = {p.is_parallel for p in Space(MATMUL, cpu).neighbours(start)}  # type: ignore[union-attr]
    kept = {p.is_parallel for p in Space(MATMUL, cpu, False).neighbours(start)}  # type: ignore[union-attr]
    assert cut == {True, False}
    assert kept == {start.is_parallel}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row_tile": 50}, "row_tile 50 is not in 1 to 49"),
        ({"row_tile": 0}, "row_tile 0"),
        ({"row_tile": -3}, "row_tile -3"),
        ({"column_vectors": 0}, "column_vectors 0"),
        ({"row_tile": 40, "column_vectors": 4}, "registers"),
        ({"lanes": 3}, "lanes is 3"),
        ({"depth_step": 3}, "depth_step 3"),
        ({"by_lane": True}, "by_lane is True"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, Any], says: str):
    cpu = load_target("x86-64-avx2").cpu
    plan: Any = replace(Space(MATMUL, cpu).start, **change)
    assert says in (plan_fault(MATMUL, plan, cpu) or "")


@pytest.mark.parametrize(
    ("workload", "change", "says"),
    [
        (DEPTHWISE, {"column_tile": 8}, "column_tile 8"),
        (DEPTHWISE, {"row_block": 8}, "row_block 8"),
        (DEPTHWISE, {"channel_vectors": 0}, "below its least"),
        (PAIR, {"row_block": 0}, "row_block 0"),
        (PAIR, {"scratch_stride": 15}, "scratch_stride 15"),
        (STEM, {"column_tile": 10}, "column_tile 10"),
        (WORKLOADS["pool"], {"chains": 14}, "chains 14"),
        (WORKLOADS["gated"], {"row_block": 26}, "row_block 26"),
        (WORKLOADS["gated"], {"scratch_stride": 19}, "scratch_stride 19"),
    ],
)
def test_so_is_one_of_any_family(workload: Any, change: dict[str, Any], says: str):
    cpu = load_target("x86-64-avx2").cpu
    start = Space(workload, cpu).seeds()
    plan: Any = next(s for s in start if not isinstance(s, ApartPlan))
    assert says in (plan_fault(workload, replace(plan, **change), cpu) or "")
    assert "no plan for this family" in (
        plan_fault(workload, Space(WORKLOADS["odd"], cpu).start, cpu) or ""
    )


def test_a_plan_with_other_fields_is_refused(host: TargetSpec):
    data = plan_to_json(Space(MATMUL, host.cpu).start)
    for changed in (data | {"kind": "none"}, data | {"more": 1}, data | {"row_tile": "4"}):
        with pytest.raises(LineError):
            plan_from(changed)


def test_proposals_are_new_and_end_when_the_space_does(host: TargetSpec):
    workload = MatmulWorkload(rows=2, depth=8, columns=8, epilogue=Epilogue())
    space, rng = Space(workload, host.cpu), random.Random(0)
    known: set[str] = set()
    model = CostModel(host.cpu)
    while plans := propose(space, [space.start], known, 4, model, rng):
        keys = {plan_key(plan) for plan in plans}
        assert len(keys) == len(plans) <= 4
        assert not keys & known
        known |= keys
    assert plan_key(space.start) in known
    assert len(known) >= 4


def test_the_model_learns_what_was_slow(host: TargetSpec):
    space, model = Space(MATMUL, host.cpu), CostModel(host.cpu)
    plans = space.neighbours(space.start)
    assert model.rank(MATMUL, plans) == plans
    for plan in plans:
        model.add(MATMUL, plan, 3.0 if plan.outer == "rows" else 1.0)  # type: ignore[union-attr]
    ranked = model.rank(MATMUL, plans)
    assert ranked[0].outer == "columns"  # type: ignore[union-attr]
    assert ranked[-1].outer == "rows"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_plan_has_as_many_features(name: str, host: TargetSpec):
    workload = WORKLOADS[name]
    lengths = {
        len(features(workload, plan, host.cpu)) for plan in Space(workload, host.cpu).seeds()
    }
    assert lengths == {33}
