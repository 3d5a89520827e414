"""Plans that an integer space offers compute the exact integers, and no others get through."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.schedule.integer_cases import with_i8mm
from tests.schedule.test_integer_kernels import plain_dot
from tests.tuning.integer_workloads import DEPTHWISE, FAMILIES, PRODUCT
from tests.tuning.test_space import TARGETS, compute
from tvm_mobilenet.schedule.integer.generic import generic
from tvm_mobilenet.schedule.integer.tiles import tile_registers
from tvm_mobilenet.schedule.intrinsics import x86
from tvm_mobilenet.targets import Cpu, TargetSpec, load_target
from tvm_mobilenet.tuning.records import plan_from, plan_to_json, workload_from, workload_to_json
from tvm_mobilenet.tuning.reference import WrongResultError, largest_error, spoilt
from tvm_mobilenet.tuning.search import features
from tvm_mobilenet.tuning.space import Space, plan_fault

CPUS = [*TARGETS, "i8mm"]


def processor(name: str) -> Cpu:
    return with_i8mm().cpu if name == "i8mm" else load_target(name).cpu


@pytest.mark.parametrize("cpu", ["x86-64-avx2", "x86-64-avx512-vnni"])
@pytest.mark.parametrize("name", FAMILIES)
def test_plans_of_the_space_compute_the_exact_integers(
    name: str, cpu: str, host: TargetSpec, monkeypatch: pytest.MonkeyPatch
):
    """A walk from the computed plan, one choice a step; VPDPBUSD is spelled out in plain TIR."""
    monkeypatch.setattr(x86, "dot", plain_dot)
    workload = FAMILIES[name][1]
    space, rng = Space(workload, processor(cpu)), random.Random(5)
    plan: Any = space.start
    for _ in range(3):
        found, expected = compute(workload, plan, host)
        assert largest_error(found, expected) == 0, plan
        assert len(np.unique(expected)) > 10, "operands that show nothing"
        plan = rng.choice(space.neighbours(plan))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cpu", CPUS)
def test_the_computed_plan_comes_first_and_has_no_fault(name: str, cpu: str):
    workload = FAMILIES[name][1]
    space = Space(workload, processor(cpu))
    start = space.start
    assert generic(workload) == workload
    assert space.seeds()[0] == start
    assert plan_from(plan_to_json(start)) == start
    assert workload_from(workload_to_json(workload)) == workload
    neighbours = space.neighbours(start)
    assert neighbours
    assert len(features(workload, start, space.cpu)) == 32
    for neighbour in neighbours:
        assert space.normal(neighbour) == neighbour
        assert plan_fault(workload, neighbour, space.cpu) is None


@pytest.mark.parametrize(
    ("cpu", "name", "fields"),
    [
        ("rpi4", "product", {"row_tile", "sums", "chunk", "unroll", "outer", "block"}),
        ("rpi5", "product", {"row_tile", "column_vectors", "unroll", "outer", "block"}),
        ("i8mm", "product", {"row_tile", "column_vectors", "unroll", "outer", "block"}),
        ("x86-64-avx2", "product", {"row_tile", "column_vectors", "unroll", "outer", "block"}),
        ("x86-64-avx512-vnni", "product", {"row_tile", "unroll", "outer", "prefetch"}),
        ("rpi5", "depthwise", {"row_tile", "column_tile", "row_block", "plane_block"}),
        ("x86-64-avx512-vnni", "depthwise", {"column_tile", "row_block", "copied_pixels", "lanes"}),
        ("x86-64-avx512-vnni", "stem", {"row_tile", "is_parallel"}),
        ("rpi4", "add", {"block", "tasks"}),
    ],
)
def test_what_may_be_changed(cpu: str, name: str, fields: set[str]):
    space = Space(FAMILIES[name][1], processor(cpu))
    changed = {
        field
        for plan in space.neighbours(space.start)
        for field in fields
        if getattr(plan, field) != getattr(space.start, field)
    }
    assert changed == fields


@pytest.mark.parametrize("cpu", ["rpi4", "rpi5", "i8mm", "x86-64-avx2", "x86-64-avx512-vnni"])
def test_tiles_beyond_the_register_file_are_never_built(cpu: str):
    space = Space(PRODUCT, processor(cpu))
    start: Any = space.start
    plans: list[Any] = list(space.neighbours(start))
    for plan in plans:
        needed = tile_registers(plan.product, plan.row_tile, plan.column_vectors)
        assert needed <= space.cpu.vector_registers
    large = replace(start, row_tile=24, column_vectors=8)
    assert "registers" in (plan_fault(PRODUCT, large, space.cpu) or "")


@pytest.mark.parametrize(
    ("workload", "change", "says"),
    [
        (PRODUCT, {"row_tile": 0}, "row_tile 0"),
        (PRODUCT, {"row_tile": 50}, "row_tile 50"),
        (PRODUCT, {"column_vectors": 9}, "column_vectors 9"),
        (PRODUCT, {"unroll": 9}, "unroll 9"),
        (PRODUCT, {"block": 0}, "block 0"),
        (PRODUCT, {"product": "vnni"}, "product is vnni"),
        (PRODUCT, {"sums": 4, "chunk": 16}, "sums of 4 in chunks of 16"),
        (DEPTHWISE, {"row_block": 10}, "row_block 10"),
        (DEPTHWISE, {"row_tile": 3, "row_block": 2}, "row_tile 3"),
        (DEPTHWISE, {"column_tile": 9}, "column_tile 9"),
        (DEPTHWISE, {"plane_block": 2}, "plane_block 2 does not divide 3"),
        (DEPTHWISE, {"copied_pixels": 0}, "copied_pixels 0"),
        (DEPTHWISE, {"lanes": 32}, "lanes is 32"),
        (FAMILIES["add"][1], {"block": 8}, "block 8"),
        (FAMILIES["add"][1], {"tasks": 3}, "tasks 3"),
        (FAMILIES["pool"][1], {"lanes": 8}, "lanes is 8"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(workload: Any, change: dict[str, Any], says: str):
    cpu = processor("rpi4")
    start: Any = Space(workload, cpu).start
    plan = replace(start, **change)
    assert says in (plan_fault(workload, plan, cpu) or "")


@pytest.mark.parametrize("rows", [3136, 784, 49])
def test_where_one_thread_measures_cores_do_not_idle_longer(rows: int):
    cpu = processor("rpi4")
    workload = replace(PRODUCT, rows=rows, columns=256)
    free, bound = Space(workload, cpu), Space(workload, cpu, is_split_free=False)
    start: Any = bound.start
    assert start.is_parallel

    def idle(plan: Any) -> float:
        """Of four cores of which each takes a quarter of the tasks, blocks of tiles or panels."""
        whole = rows // plan.row_tile if plan.outer == "rows" else 256 // (4 * plan.column_vectors)
        blocks = [min(plan.block, whole - at) for at in range(0, whole, plan.block)]
        each = -(-len(blocks) // 4)
        return (
            max(sum(blocks[at : at + each]) for at in range(0, len(blocks), each)) * 4 / whole - 1
        )

    assert max(map(idle, free.neighbours(start))) > idle(start) + 0.25
    assert max(map(idle, bound.neighbours(start))) <= idle(start) + 0.05


def test_a_whole_number_that_is_off_by_one_or_missing_is_a_wrong_result():
    expected = np.arange(200, dtype=np.uint8).reshape(2, 100)
    assert largest_error(expected.copy(), expected) == 0
    with pytest.raises(WrongResultError, match=r"100\.0 % of the whole numbers differ"):
        largest_error(spoilt(expected.shape, expected), expected)
    wrong = expected.copy()
    wrong[1, 3] += 1
    with pytest.raises(WrongResultError, match=r"0\.5 % of the whole numbers differ, by up to 1"):
        largest_error(wrong, expected)


def test_what_a_record_does_not_spell_is_at_its_default():
    """So a choice that comes later leaves the records of before as they are."""
    plan = Space(PRODUCT, processor("rpi5")).start
    spelled = plan_to_json(plan)
    assert "block" not in spelled
    assert plan_from(spelled) == plan
    assert "may_overflow" not in workload_to_json(PRODUCT)["requantize"]
