"""Hard-swish as an epilogue of every kernel, and the gate of squeeze-and-excite."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule.test_kernels import (
    CPUS,
    assert_close,
    depthwise,
    nhwc,
    normal,
    run,
    runnable_here,
)
from tvm_mobilenet.schedule.convolution import pack_conv, plan_conv, write_conv
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.gated import plan_gated, write_gated
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, GatedWorkload, MatmulWorkload
from tvm_mobilenet.targets import Cpu, load_target

SWISH = Epilogue(bias=True, activation="hard-swish")


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    return runnable_here(load_target(request.param).cpu)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def test_hard_swish_after_a_matrix_product_and_a_residual(cpu: Cpu, rng: np.random.Generator):
    epilogue = Epilogue(bias=True, residual=True, activation="hard-swish", high=2.0)
    workload = MatmulWorkload(rows=13, depth=8, columns=24, epilogue=epilogue)
    plan = plan_matmul(workload, cpu)
    x, w, bias, residual = (normal(rng, *s) for s in ((13, 8), (8, 24), (24,), (13, 24)))
    function = write_matmul(workload, plan)
    found = run(function, [x, pack_matmul(w, plan), bias, residual], (13, 24))
    assert_close(found, np.minimum(hard_swish(x @ w + bias + residual), 2.0))


def test_hard_swish_after_the_stem(cpu: Cpu, rng: np.random.Generator):
    workload = ConvWorkload(
        batch=1,
        height=9,
        width=9,
        in_channels=3,
        out_channels=16,
        kernel=(1, 1),
        input_layout="NCHW",
        epilogue=SWISH,
    )
    plan = plan_conv(workload, cpu)
    x, w, bias = normal(rng, 1, 3, 9, 9), normal(rng, 16, 3, 1, 1), normal(rng, 16)
    found = run(write_conv(workload, plan), [x, pack_conv(w, plan), bias], (1, 9, 9, 16))
    assert_close(found, hard_swish(nhwc(x) @ w[:, :, 0, 0].T + bias))


def test_hard_swish_after_a_depthwise_convolution(cpu: Cpu, rng: np.random.Generator):
    workload = depthwise(5, 24, 1, 5)
    x, w, bias = normal(rng, 1, 24, 5, 5), normal(rng, 24, 1, 5, 5), normal(rng, 24)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = np.zeros((1, 24, 5, 5), "float32")
    for ky in range(5):
        for kx in range(5):
            expected += padded[:, :, ky : ky + 5, kx : kx + 5] * w[None, :, 0, ky, kx, None, None]
    workload = ConvWorkload(**({**vars(workload), "epilogue": SWISH}))
    plan = plan_depthwise(workload, cpu)
    found = run(
        write_depthwise(workload, plan), [nhwc(x), pack_depthwise(w, plan), bias], (1, 5, 5, 24)
    )
    assert_close(found, hard_swish(nhwc(expected) + bias))


@pytest.mark.parametrize(
    ("batch", "pixels", "depth", "columns"),
    [(1, 49, 72, 40), (2, 9, 24, 16), (3, 1, 8, 8), (1, 196, 13, 24), (1, 25, 64, 160)],
)
def test_gated_product_equals_numpy(
    cpu: Cpu, rng: np.random.Generator, batch: int, pixels: int, depth: int, columns: int
):
    product = MatmulWorkload(
        rows=batch * pixels,
        depth=depth,
        columns=columns,
        epilogue=Epilogue(bias=True, residual=True),
    )
    workload = GatedWorkload(batch=batch, pointwise=product)
    plan = plan_gated(workload, cpu)
    x, gate = normal(rng, batch, pixels, depth), normal(rng, batch, 1, depth)
    w, bias = normal(rng, depth, columns), normal(rng, columns)
    residual = normal(rng, batch, pixels, columns)
    function = write_gated(
        workload, plan, x_shape=x.shape, gate_shape=gate.shape, y_shape=residual.shape
    )
    arguments = [x, gate, pack_matmul(w, plan.pointwise), bias, residual]
    found = run(function, arguments, residual.shape)
    assert_close(found, (x * gate) @ w + bias + residual)


@pytest.mark.parametrize("target", ["x86-64-avx2", "rpi4"])
def test_gated_tasks_keep_every_core_busy_and_fit_the_cache(target: str):
    cpu = load_target(target).cpu
    product = MatmulWorkload(rows=28 * 28, depth=120, columns=40)
    plan = plan_gated(GatedWorkload(batch=1, pointwise=product), cpu)
    assert plan.is_parallel
    assert -(-product.rows // plan.row_block) >= cpu.cores
    assert plan.row_block * plan.scratch_stride * 4 <= cpu.l2_kib * 1024
