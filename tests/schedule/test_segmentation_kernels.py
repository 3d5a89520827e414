"""Resizing, joined branches and atrous convolutions against ONNX Runtime and numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule.segmentation_cases import (
    JOINED,
    RESIZES,
    TAPS,
    Case,
    atrous,
    joined_case,
    normal,
    onnx_runtime,
    resize_case,
    taps_case,
)
from tests.schedule.test_kernels import assert_close, run, runnable_here
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.resize import axis_table
from tvm_mobilenet.schedule.taps import is_by_taps
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload, ResizeWorkload
from tvm_mobilenet.targets import Cpu, load_target


@pytest.fixture(params=["x86-64-avx512-vnni", "x86-64-avx2", "rpi4"])
def cpu(request: pytest.FixtureRequest) -> Cpu:
    return runnable_here(load_target(request.param).cpu)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def check(case: Case) -> None:
    assert_close(run(case.function, case.arguments, case.expected.shape), case.expected)


@pytest.mark.parametrize("workload", RESIZES, ids=str)
def test_resize_equals_onnx_runtime(cpu: Cpu, rng, workload: ResizeWorkload) -> None:
    check(resize_case(workload, cpu, rng))


@pytest.mark.parametrize("workload", TAPS, ids=str)
def test_tap_by_tap_equals_onnx_runtime(cpu: Cpu, rng, workload: ConvWorkload) -> None:
    check(taps_case(workload, cpu, rng))


@pytest.mark.parametrize(("batch", "side", "parts", "columns"), JOINED)
def test_joined_equals_numpy(cpu: Cpu, rng, batch, side, parts, columns) -> None:
    check(joined_case(batch, side, parts, columns, cpu, rng))


@pytest.mark.parametrize(("kernel", "rate", "side"), [(3, 2, 7), (5, 2, 9), (3, 4, 6)])
def test_atrous_depthwise_equals_onnx_runtime(cpu: Cpu, rng, kernel, rate, side) -> None:
    channels = 40
    workload = ConvWorkload(
        batch=2,
        height=side,
        width=side + 1,
        in_channels=channels,
        out_channels=channels,
        kernel=(kernel, kernel),
        dilation=(rate, rate),
        padding=(kernel // 2 * rate,) * 4,
        groups=channels,
        epilogue=Epilogue(bias=True, low=0.0, high=6.0),
    )
    plan = plan_depthwise(workload, cpu)
    x, w = normal(rng, 2, side, side + 1, channels), normal(rng, channels, 1, kernel, kernel)
    bias = normal(rng, channels)
    expected = onnx_runtime(
        "Conv",
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        {"w": w, "b": bias},
        dilations=workload.dilation,
        pads=workload.padding,
        group=channels,
    )
    inputs = [x, pack_depthwise(w, plan), bias]
    check(Case(write_depthwise(workload, plan), inputs, np.clip(expected, 0, 6)))


def test_a_product_ends_in_a_sigmoid(cpu: Cpu, rng) -> None:
    workload = MatmulWorkload(
        rows=5, depth=24, columns=37, epilogue=Epilogue(bias=True, activation="sigmoid")
    )
    plan = plan_matmul(workload, cpu)
    assert not plan.packs_rows
    x, w, bias = normal(rng, 5, 24), normal(rng, 24, 37), normal(rng, 37)
    expected = 1 / (1 + np.exp(-(x @ w + bias)))
    check(Case(write_matmul(workload, plan), [x, pack_matmul(w, plan), bias], expected))


@pytest.mark.parametrize(
    ("before", "after", "mode", "period"),
    [
        (20, 160, "half_pixel", (4, 8)),
        (33, 513, "align_corners", (0, 16)),
        (20, 40, "half_pixel", (1, 2)),
        (20, 50, "half_pixel", None),
        (33, 512, "align_corners", None),
        (8, 4, "half_pixel", None),
        (1, 9, "half_pixel", None),
    ],
)
def test_a_whole_factor_is_seen_in_the_table(before, after, mode, period) -> None:
    assert axis_table(before, after, mode).period == period


def test_tap_by_tap_is_for_rates_and_weights_beyond_the_cache() -> None:
    cpu = load_target("x86-64-avx512-vnni").cpu
    assert is_by_taps(atrous((20, 20), (960, 256), 12), cpu)
    assert is_by_taps(atrous((20, 20), (256, 256), 1), cpu)
    assert not is_by_taps(atrous((20, 20), (16, 16), 1), cpu)
    assert not is_by_taps(atrous((20, 20), (960, 256), 12, kernel=1), cpu)
