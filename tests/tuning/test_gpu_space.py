from __future__ import annotations

import random

import pytest

from tvm_mobilenet.schedule.mali.families import plan_fault
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
)
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.gpu_space import GpuSpace, gpu_features
from tvm_mobilenet.tuning.records import plan_from, plan_to_json

RELU6 = Epilogue(bias=True, low=0, high=6)
WORKLOADS = [
    MatmulWorkload(rows=196, depth=512, columns=512, epilogue=RELU6),
    MatmulWorkload(rows=1, depth=3, columns=5),
    ConvWorkload(
        batch=1, height=28, width=28, in_channels=24, out_channels=24, groups=24, kernel=(3, 3),
        padding=(1, 1, 1, 1), epilogue=RELU6,
    ),
    ConvWorkload(
        batch=1, height=32, width=32, in_channels=3, out_channels=16, kernel=(3, 3),
        padding=(1, 1, 1, 1), input_layout="NCHW",
    ),
    PoolWorkload(batch=1, pixels=49, channels=96),
    GatedWorkload(batch=2, pointwise=MatmulWorkload(rows=98, depth=72, columns=40)),
]  # fmt: skip


def space(name, workload):
    gpu = load_target(name).gpu
    assert gpu is not None
    return GpuSpace(workload, gpu)


@pytest.mark.parametrize("name", ["rk3399-mali", "rk3588-mali", "vim3-mali", "opencl-generic"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: f"{type(w).__name__}-{w.bytes}")
def test_every_plan_of_a_space_is_within_the_device(name, workload):
    plans = space(name, workload)
    seeds = plans.seeds()
    assert seeds[0] == plans.start
    near = plans.neighbours(plans.start)
    assert len(set(near)) == len(near)
    assert plans.start not in near
    rng = random.Random(0)
    far = [plans.step(rng.choice(near or seeds), rng) for _ in range(50)]
    width = len(gpu_features(workload, plans.start))
    for plan in [*seeds, *near, *(p for p in far if p is not None)]:
        assert plan_fault(workload, plan, plans.gpu) is None
        assert plan_from(plan_to_json(plan)) == plan
        assert len(gpu_features(workload, plan)) == width


def test_a_search_may_change_everything_that_a_plan_holds():
    plans = space("opencl-generic", WORKLOADS[0])
    near = plans.neighbours(plans.start)
    for field in ("row_tile", "column_vectors", "lanes", "depth_lanes", "depth_step", "group",
                  "order", "weights"):  # fmt: skip
        assert len({getattr(plan, field) for plan in near}) > 1


def test_a_mali_is_offered_no_tile_that_it_would_spill():
    wide = space("opencl-generic", WORKLOADS[0]).seeds()
    narrow = space("rk3399-mali", WORKLOADS[0]).seeds()
    assert any(plan.lanes == 8 and plan.row_tile == 6 for plan in wide)
    assert not any(plan.lanes == 8 and plan.row_tile == 6 for plan in narrow)
