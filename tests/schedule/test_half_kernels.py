"""Kernels on float16 as LLVM compiles them for a Cortex-A76, run under the emulator.

Against float64 on the same float16 numbers. The relative L2 distance that rounding explains is
2^-11 for what is stored, and where sums are float16 too, half of that times the root of their
length. One wrong lane of one element is ten times as far.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedule.emulated import needs_emulator, run_emulated
from tests.schedule.test_aarch64 import depthwise, windows
from tvm_mobilenet.schedule.convolution import pack_conv, plan_conv, write_conv
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.emit import stored_as
from tvm_mobilenet.schedule.gated import plan_gated, write_gated
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.pool import plan_pool, write_pool
from tvm_mobilenet.schedule.separable import plan_separable, write_separable
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
)
from tvm_mobilenet.targets import load_target

pytestmark = needs_emulator

A76 = load_target("rpi5")
WIDENING = A76.cpu.model_copy(update={"isa": "generic"})
"""For sums of float32: no assembly, which reads float16 by address."""
FULL = Epilogue(bias=True, residual=True, activation="hard-swish", low=-0.3, high=5.0)
RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
Run = Callable[..., np.ndarray]


@pytest.fixture
def run(runner_object: Path, tmp_path: Path) -> Run:
    def run_kernel(function: Any, arguments: list[np.ndarray], shape: tuple[int, ...]) -> Any:
        output = np.full(shape, np.nan, "float16")
        return run_emulated(function, arguments, output, A76, runner_object, tmp_path)

    return run_kernel


def half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype("float16")


def finish(total: np.ndarray, epilogue: Epilogue, residual: np.ndarray | None) -> np.ndarray:
    if residual is not None:
        total = total + residual.astype("float64")
    if epilogue.activation == "hard-swish":
        total = total * np.clip(total / 6 + 0.5, 0, 1)
    return np.clip(total, epilogue.low, epilogue.high)


def assert_close(found: np.ndarray, expected: np.ndarray, length: int, sums: str) -> None:
    limit = 2**-11 * (2 + (math.sqrt(length) / 2 if sums == "float16" else 0))
    distance = np.linalg.norm(found.astype("float64") - expected) / np.linalg.norm(expected)
    assert distance <= limit


@pytest.mark.parametrize("sums", ["float16", "float32"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "epilogue"),
    # Rows and columns that tiles and vectors do not divide, a depth that is not packed, a vector.
    [
        (29, 88, 56, FULL),
        (49, 64, 44, RELU6),
        (13, 20, 16, RELU6),
        (1, 44, 1000, Epilogue(bias=True)),
    ],
)
def test_matmul(
    run: Run,
    rng: np.random.Generator,
    rows: int,
    depth: int,
    columns: int,
    epilogue: Epilogue,
    sums: str,
) -> None:
    workload = MatmulWorkload(
        rows=rows, depth=depth, columns=columns, epilogue=epilogue, dtype=sums
    )
    plan = plan_matmul(workload, A76.cpu if sums == "float16" else WIDENING)
    assert plan.lanes == (8 if sums == "float16" else 4)
    x, w = half(rng, rows, depth), half(rng, depth, columns)
    bias = half(rng, columns)
    inputs = [x, pack_matmul(w, plan), bias.astype(sums)]
    residual = half(rng, rows, columns) if epilogue.residual else None
    if residual is not None:
        inputs.append(residual)
    with stored_as("float16"):
        kernel = write_matmul(workload, plan)
    total = x.astype("float64") @ w.astype("float64") + bias.astype("float64")
    found = run(kernel, inputs, (rows, columns))
    assert_close(found, finish(total, epilogue, residual), depth, sums)


@pytest.mark.parametrize("sums", ["float16", "float32"])
@pytest.mark.parametrize(("size", "channels", "stride"), [(9, 16, 1), (12, 24, 2), (7, 12, 1)])
def test_depthwise(
    run: Run, rng: np.random.Generator, size: int, channels: int, stride: int, sums: str
) -> None:
    workload = replace(depthwise(size, size, channels, stride), dtype=sums)
    plan = plan_depthwise(workload, A76.cpu if sums == "float16" else WIDENING)
    x, w, bias = (
        half(rng, 1, size, size, channels),
        half(rng, channels, 1, 3, 3),
        half(rng, channels),
    )
    shape = (1, workload.out_height, workload.out_width, channels)
    with stored_as("float16"):
        kernel = write_depthwise(workload, plan)
    found = run(kernel, [x, pack_depthwise(w, plan), bias.astype(sums)], shape)
    assert_close(found, filtered(x, w, bias, workload), 9, sums)


def filtered(x: np.ndarray, w: np.ndarray, bias: np.ndarray, workload: ConvWorkload) -> np.ndarray:
    wide = w.astype("float64")
    taps = windows(x.astype("float64"), workload).items()
    total = sum(part * wide[:, 0, ky, kx] for (ky, kx), part in taps)
    return np.clip(total + bias.astype("float64"), 0, 6)


@pytest.mark.parametrize("sums", ["float16", "float32"])
def test_stem(run: Run, rng: np.random.Generator, sums: str) -> None:
    workload = ConvWorkload(
        batch=1,
        height=20,
        width=22,
        in_channels=3,
        out_channels=24,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(0, 0, 1, 1),
        input_layout="NCHW",
        epilogue=RELU6,
        dtype=sums,
    )
    plan = plan_conv(workload, A76.cpu if sums == "float16" else WIDENING)
    assert plan.by_lane
    x, w, bias = half(rng, 1, 3, 20, 22), half(rng, 24, 3, 3, 3), half(rng, 24)
    wide = w.astype("float64")
    taps = windows(x.astype("float64").transpose(0, 2, 3, 1), workload).items()
    total = sum(part @ wide[:, :, ky, kx].T for (ky, kx), part in taps)
    shape = (1, workload.out_height, workload.out_width, 24)
    with stored_as("float16"):
        kernel = write_conv(workload, plan)
    found = run(kernel, [x, pack_conv(w, plan), bias.astype(sums)], shape)
    assert_close(found, np.clip(total + bias.astype("float64"), 0, 6), 27, sums)


@pytest.mark.parametrize("sums", ["float16", "float32"])
# A width of whole groups of four, which the depthwise tile packs itself, and another.
@pytest.mark.parametrize("size", [8, 7])
def test_separable(run: Run, rng: np.random.Generator, size: int, sums: str) -> None:
    first = replace(depthwise(size, size, 16, 1), dtype=sums)
    second = MatmulWorkload(rows=size * size, depth=16, columns=40, epilogue=RELU6, dtype=sums)
    workload = SeparableWorkload(depthwise=first, pointwise=second)
    cpu = (A76.cpu if sums == "float16" else WIDENING).model_copy(update={"cores": 1})
    plan = plan_separable(workload, cpu)
    assert plan is not None
    x, w, bias = half(rng, 1, size, size, 16), half(rng, 16, 1, 3, 3), half(rng, 16)
    matrix, bias2 = half(rng, 16, 40), half(rng, 40)
    between = filtered(x, w, bias, first).reshape(-1, 16)
    expected = np.clip(between @ matrix.astype("float64") + bias2.astype("float64"), 0, 6)
    inputs = [
        x,
        pack_depthwise(w, plan.depthwise),
        bias.astype(sums),
        pack_matmul(matrix, plan.pointwise),
        bias2.astype(sums),
    ]
    shape = (1, size, size, 40)
    with stored_as("float16"):
        kernel = write_separable(workload, plan, y_shape=shape)
    assert_close(run(kernel, inputs, shape).reshape(-1, 40), expected, 25, sums)


def test_gated(run: Run, rng: np.random.Generator) -> None:
    product = MatmulWorkload(
        rows=20, depth=40, columns=24, epilogue=Epilogue(bias=True), dtype="float16"
    )
    workload = GatedWorkload(batch=1, pointwise=product)
    plan = plan_gated(workload, A76.cpu)
    x, gate, w, bias = half(rng, 20, 40), half(rng, 1, 40), half(rng, 40, 24), half(rng, 24)
    kernel = write_gated(workload, plan, x_shape=(20, 40), gate_shape=(1, 40), y_shape=(20, 24))
    found = run(kernel, [x, gate, pack_matmul(w, plan.pointwise), bias], (20, 24))
    scaled = x.astype("float64") * gate.astype("float64")
    expected = scaled @ w.astype("float64") + bias.astype("float64")
    assert_close(found, expected, 41, "float16")


def test_pool_sums_in_float32(run: Run, rng: np.random.Generator) -> None:
    """4096 numbers of about 1 exceed the digits of float16 when summed in it."""
    workload = PoolWorkload(batch=1, pixels=4096, channels=24)
    plan = plan_pool(workload, WIDENING)
    x = (1 + half(rng, 1, 64, 64, 24) / 8).astype("float16")
    with stored_as("float16"):
        kernel = write_pool(workload, plan, x_shape=x.shape, y_shape=(1, 24))
    found = run(kernel, [x], (1, 24))
    assert_close(found, x.astype("float64").mean(axis=(1, 2)), 1, "float32")
