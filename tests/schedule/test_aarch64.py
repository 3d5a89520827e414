"""Kernels for AArch64 as LLVM compiles them, run under the emulator against plain arithmetic.

`test_kernels.py` runs the same plans on this machine; here it is the processor's own code. Each
kernel is linked statically with a small runner, so that nothing but the emulator is needed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedule.emulated import needs_emulator, run_emulated
from tvm_mobilenet.schedule.convolution import pack_conv, plan_conv, write_conv
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.separable import ApartPlan, plan_separable, write_separable
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.kernels import calls, kernel_module
from tvm_mobilenet.tuning.reference import largest_error, make_operands, reference
from tvm_mobilenet.tuning.space import Space

pytestmark = needs_emulator

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
# As in test_kernels.py: sums of a few hundred products of unit-normal numbers in another order.
TOLERANCE = 2e-4
Run = Callable[..., np.ndarray]


@pytest.fixture
def run(runner_object: Path, tmp_path: Path) -> Run:
    def run_kernel(
        function: Any,
        arguments: list[np.ndarray],
        shape: tuple[int, ...],
        target: str = "rpi4",
        threads: int = 1,
    ) -> np.ndarray:
        output = np.full(shape, np.nan, "float32")
        spec = load_target(target)
        return run_emulated(function, arguments, output, spec, runner_object, tmp_path, threads)

    return run_kernel


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype="float32")


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=1e-5)


def windows(x: np.ndarray, w: ConvWorkload) -> dict[tuple[int, int], np.ndarray]:
    """Return what each tap of a convolution of NHWC `x` reads, (N, OH, OW, C)."""
    top, left, bottom, right = w.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (w.out_height - 1) * w.stride[0] + 1
    width = (w.out_width - 1) * w.stride[1] + 1
    taps = {}
    for ky in range(w.kernel[0]):
        for kx in range(w.kernel[1]):
            y0, x0 = ky * w.dilation[0], kx * w.dilation[1]
            part = padded[:, y0 : y0 + height : w.stride[0], x0 : x0 + width : w.stride[1]]
            taps[ky, kx] = part
    return taps


def depthwise(
    height: int, width: int, channels: int, stride: int, batch: int = 1, kernel: int = 3
) -> ConvWorkload:
    return ConvWorkload(
        batch=batch,
        height=height,
        width=width,
        in_channels=channels,
        out_channels=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4,
        groups=channels,
        epilogue=RELU6,
    )


def depthwise_reference(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, workload: ConvWorkload
) -> np.ndarray:
    total = sum(part * w[:, 0, ky, kx] for (ky, kx), part in windows(x, workload).items())
    return np.clip(total + bias, 0, 6)


@pytest.mark.parametrize("target", ["rpi4", "rpi3"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    # A tile that does not divide the rows, a panel that does not divide the columns, a depth of
    # few steps, one that is not packed, a vector.
    [(49, 64, 40), (13, 24, 37), (16, 8, 16), (9, 13, 24), (1, 40, 1000)],
)
def test_matmul(
    run: Run, rng: np.random.Generator, target: str, rows: int, depth: int, columns: int
) -> None:
    workload = MatmulWorkload(rows=rows, depth=depth, columns=columns, epilogue=RELU6)
    plan = plan_matmul(workload, load_target(target).cpu)
    x, w, bias = normal(rng, rows, depth), normal(rng, depth, columns), normal(rng, columns)
    inputs = [x, pack_matmul(w, plan), bias]
    found = run(write_matmul(workload, plan), inputs, (rows, columns), target)
    assert_close(found, np.clip(x @ w + bias, 0, 6))


@pytest.mark.parametrize(
    ("rows", "vectors", "step"),
    # Rows in pairs of steps and in fours, one chunk of weights and two, stores in two parts, and
    # what is left of rows, of the groups of a tile and of the steps of a loop.
    [(8, 3, 16), (4, 6, 32), (12, 2, 8), (20, 1, 12), (6, 2, 32), (7, 3, 4), (1, 5, 32)],
)
def test_tiles_in_assembly(
    run: Run, rng: np.random.Generator, rows: int, vectors: int, step: int
) -> None:
    epilogue = Epilogue(bias=True, residual=True, activation="hard-swish", low=-0.3, high=5.0)
    workload = MatmulWorkload(rows=29, depth=44, columns=4 * vectors * 2 + 8, epilogue=epilogue)
    plan = replace(
        plan_matmul(workload, load_target("rpi4").cpu),
        row_tile=rows,
        column_vectors=vectors,
        depth_step=step,
        outer="rows" if rows == 8 else "columns",
    )
    assert plan.in_assembly
    x, w, bias = (normal(rng, *s) for s in ((29, 44), (44, workload.columns), (workload.columns,)))
    residual = normal(rng, 29, workload.columns)
    inputs = [x, pack_matmul(w, plan), bias, residual]
    total = x @ w + bias + residual
    expected = np.clip(total * np.clip(total / 6 + 0.5, 0, 1), -0.3, 5.0)
    assert_close(run(write_matmul(workload, plan), inputs, expected.shape), expected)


def test_matmul_cut_among_threads_with_a_residual(run: Run, rng: np.random.Generator) -> None:
    epilogue = Epilogue(bias=True, residual=True, low=0.0)
    workload = MatmulWorkload(rows=196, depth=96, columns=104, epilogue=epilogue)
    plan = plan_matmul(workload, load_target("rpi4").cpu)
    assert plan.is_parallel
    assert plan.packs_rows
    x, w, bias = normal(rng, 196, 96), normal(rng, 96, 104), normal(rng, 104)
    residual = normal(rng, 196, 104)
    inputs = [x, pack_matmul(w, plan), bias, residual]
    found = run(write_matmul(workload, plan), inputs, (196, 104), threads=3)
    assert_close(found, np.maximum(x @ w + bias + residual, 0))


@pytest.mark.parametrize(
    ("height", "width", "channels", "stride", "batch", "kernel"),
    [(14, 14, 16, 1, 1, 3), (9, 13, 8, 2, 2, 3), (3, 5, 12, 1, 1, 3), (11, 11, 8, 2, 1, 5)],
)
def test_depthwise(
    run: Run,
    rng: np.random.Generator,
    height: int,
    width: int,
    channels: int,
    stride: int,
    batch: int,
    kernel: int,
) -> None:
    workload = depthwise(height, width, channels, stride, batch, kernel)
    plan = plan_depthwise(workload, load_target("rpi4").cpu)
    assert plan.row_tile
    x, bias = normal(rng, batch, height, width, channels), normal(rng, channels)
    w = normal(rng, channels, 1, kernel, kernel)
    expected = depthwise_reference(x, w, bias, workload)
    found = run(write_depthwise(workload, plan), [x, pack_depthwise(w, plan), bias], expected.shape)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "change", [{}, {"height": 9, "width": 21, "batch": 2, "padding": (0, 0, 1, 1)}], ids=str
)
def test_stem(run: Run, rng: np.random.Generator, change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "batch": 1,
        "height": 32,
        "width": 32,
        "in_channels": 3,
        "out_channels": 24,
        "kernel": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1, 1, 1),
    }
    workload = ConvWorkload(**(fields | change), input_layout="NCHW", epilogue=RELU6)
    plan = plan_conv(workload, load_target("rpi4").cpu)
    assert plan.by_lane
    x = normal(rng, workload.batch, workload.height, workload.width, 3)
    w, bias = normal(rng, 24, 3, 3, 3), normal(rng, 24)
    total = sum(part @ w[:, :, ky, kx].T for (ky, kx), part in windows(x, workload).items())
    expected = np.clip(total + bias, 0, 6)
    inputs = [x.transpose(0, 3, 1, 2), pack_conv(w, plan), bias]
    assert_close(run(write_conv(workload, plan), inputs, expected.shape), expected)


@pytest.mark.parametrize(
    ("size", "stride", "batch"),
    # A width of whole groups of four pixels is packed as it is computed, others in a second pass.
    [(28, 1, 1), (32, 2, 2), (15, 1, 1), (27, 2, 1)],
)
def test_separable(run: Run, rng: np.random.Generator, size: int, stride: int, batch: int) -> None:
    first = depthwise(size, size, 16, stride, batch)
    pixels = batch * first.out_height * first.out_width
    second = MatmulWorkload(rows=pixels, depth=16, columns=40, epilogue=RELU6)
    workload = SeparableWorkload(depthwise=first, pointwise=second)
    plan = plan_separable(workload, load_target("rpi4").cpu.model_copy(update={"cores": 1}))
    assert plan is not None
    assert plan.pointwise.packs_rows
    x, w = normal(rng, batch, size, size, 16), normal(rng, 16, 1, 3, 3)
    bias, matrix, bias2 = normal(rng, 16), normal(rng, 16, 40), normal(rng, 40)
    between = depthwise_reference(x, w, bias, first)
    shape = (batch, first.out_height, first.out_width, 40)
    inputs = [
        x,
        pack_depthwise(w, plan.depthwise),
        bias,
        pack_matmul(matrix, plan.pointwise),
        bias2,
    ]
    found = run(write_separable(workload, plan, y_shape=shape), inputs, shape)
    assert_close(found, np.clip(between @ matrix + bias2, 0, 6))


def pair(size: int, channels: int, columns: int, batch: int = 1) -> SeparableWorkload:
    first = depthwise(size, size, channels, 1, batch)
    pixels = batch * first.out_height * first.out_width
    second = MatmulWorkload(rows=pixels, depth=channels, columns=columns, epilogue=RELU6)
    return SeparableWorkload(depthwise=first, pointwise=second)


SPACES: dict[str, TunableWorkload] = {
    "matmul": MatmulWorkload(rows=29, depth=36, columns=44, epilogue=RELU6),
    "odd": MatmulWorkload(rows=29, depth=24, columns=37, epilogue=RELU6),
    "depthwise": depthwise(13, 11, 24, 2, 2),
    "stem": ConvWorkload(
        batch=2,
        height=17,
        width=21,
        in_channels=3,
        out_channels=24,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(0, 0, 1, 1),
        input_layout="NCHW",
        epilogue=RELU6,
    ),
    "groups": pair(12, 16, 24, 2),
    "no groups": pair(7, 16, 24, 2),
    "gated": GatedWorkload(
        batch=2, pointwise=MatmulWorkload(rows=26, depth=24, columns=20, epilogue=RELU6)
    ),
}


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))]
)
@pytest.mark.parametrize("name", SPACES)
def test_plans_that_a_search_may_try(run: Run, name: str, seed: int) -> None:
    """Two steps from the computed plan, at random."""
    workload, rng = SPACES[name], random.Random(f"{name} {seed}")
    space = Space(workload, load_target("rpi4").cpu)
    plan: Any = rng.choice([p for p in space.seeds() if not isinstance(p, ApartPlan)])
    for _ in range(2):
        plan = rng.choice(space.neighbours(plan))
    assert plan != space.start
    operands = make_operands(workload)
    (call,) = calls(workload, plan, operands)
    function = kernel_module(workload, plan)[call.symbol].with_attr("global_symbol", "main")
    inputs = [array for array in call.inputs if array is not None]
    found = run(function, inputs, call.shape)
    largest_error(found, reference(workload, operands))
