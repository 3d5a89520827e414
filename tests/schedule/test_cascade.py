"""Cascades against plain arithmetic, and where the selection makes them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.schedule.cascade import can_follow, plan_cascade, write_cascade
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.partition import stages_to_fuse
from tvm_mobilenet.schedule.workload import CascadeWorkload, ConvWorkload, Epilogue
from tvm_mobilenet.targets import Cpu, load_target
from tvm_mobilenet.tuning.kernels import calls
from tvm_mobilenet.tuning.reference import largest_error, make_operands, reference

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)


def conv(
    size: int,
    channels: int,
    out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    padding: tuple[int, int, int, int] | None = None,
    batch: int = 1,
    **more: Any,
) -> ConvWorkload:
    pad = kernel // 2
    return ConvWorkload(
        batch=batch,
        height=size,
        width=size,
        in_channels=channels,
        out_channels=out,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=padding or (pad, pad, pad, pad),
        groups=groups,
        epilogue=more.pop("epilogue", RELU6),
        **more,
    )


def depthwise(size: int, channels: int, **more: Any) -> ConvWorkload:
    return conv(size, channels, channels, groups=channels, **more)


def pointwise(size: int, channels: int, out: int, **more: Any) -> ConvWorkload:
    return conv(size, channels, out, kernel=1, **more)


RESIDUAL = Epilogue(bias=True, residual=True)
SHAPES = {
    "stem to the second stride": (
        conv(33, 3, 16, stride=2, input_layout="NCHW"),
        depthwise(17, 16),
        pointwise(17, 16, 24),
        depthwise(17, 24, stride=2),
        pointwise(9, 24, 40),
    ),
    "bottleneck": (
        pointwise(14, 8, 48, batch=2),
        depthwise(14, 48, batch=2),
        pointwise(14, 48, 8, batch=2, epilogue=RESIDUAL),
    ),
    "uneven padding": (
        conv(24, 4, 16, stride=2, padding=(0, 0, 1, 1)),
        conv(12, 16, 32, stride=2, padding=(0, 0, 1, 1)),
    ),
    "ends with a depthwise": (pointwise(10, 12, 36), depthwise(10, 36, stride=2)),
}


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return load_target("x86-64-avx512-vnni").cpu


@pytest.mark.parametrize("cores", [1, 20])
@pytest.mark.parametrize("name", SHAPES)
def test_cascade_equals_its_stages(name: str, cores: int, cpu: Cpu):
    stages = SHAPES[name]
    assert all(can_follow(a, b) for a, b in itertools.pairwise(stages))
    workload = CascadeWorkload(stages=stages)
    cpu = cpu.model_copy(update={"cores": cores})
    plan = replace(plan_cascade(workload, cpu), is_parallel=cores > 1)
    rows = stages[-1].out_height
    # These are too small to be cut among threads: cut them all the same.
    plan = replace(plan, row_block=-(-rows // min(cores, rows)))
    operands = make_operands(workload)
    expected = reference(workload, operands)
    (call,) = calls(workload, plan, operands)
    with lowering():
        library = tvm.compile(
            IRModule({"main": write_cascade(workload, plan)}),
            target=load_target("host").tvm_target(),
        )
    y = tvm.runtime.tensor(np.full(call.shape, np.nan, np.float32))
    library["main"](*(tvm.runtime.tensor(a) for a in call.inputs), y)
    assert largest_error(y.numpy(), expected) >= 0
    assert expected.std() > 0.1


def test_a_stage_follows_only_what_a_ring_can_hold():
    first = pointwise(14, 8, 16)
    assert can_follow(first, depthwise(14, 16))
    assert not can_follow(replace(first, epilogue=RESIDUAL), depthwise(14, 16))
    assert not can_follow(first, depthwise(14, 24)), "other channels"
    assert not can_follow(first, replace(depthwise(14, 16), dilation=(2, 2)))
    assert not can_follow(first, pointwise(14, 16, 8, stride=2)), "rows that no window covers"


def test_large_tensors_stay_between_stages_and_small_ones_do_not(cpu: Cpu):
    head = [
        conv(224, 3, 32, stride=2, input_layout="NCHW"),
        depthwise(112, 32),
        pointwise(112, 32, 64),
        depthwise(112, 64, stride=2),
        pointwise(56, 64, 128),
    ]
    two = cpu.model_copy(update={"cores": 2})
    assert stages_to_fuse(head, two) == 5
    tail = [depthwise(7, 1024), pointwise(7, 1024, 1024)]
    assert stages_to_fuse([*tail, *tail], two) <= 2
