"""Every kernel family against plain arithmetic, on the shapes that schedules find awkward.

The plans of other processors are run here too: a plan is only a choice of tiles and lanes, and TIR
of any width runs on any machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.schedule.convolution import pack_conv, plan_conv, write_conv
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.pool import plan_pool, write_pool
from tvm_mobilenet.schedule.separable import plan_separable, write_separable
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
)
from tvm_mobilenet.targets import Cpu, load_target

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
CPUS = ["x86-64-avx512-vnni", "x86-64-avx2", "rpi4", "generic-armv7"]
# Sums of a few hundred products of unit-normal numbers, in another order: a few ulp of the sum of
# magnitudes, which stays below 1e3 here.
TOLERANCE = 2e-4


def runnable_here(cpu: Cpu) -> Cpu:
    """Return the processor without assembly of its own; `test_aarch64.py` runs that."""
    return cpu.model_copy(update={"isa": "generic"}) if cpu.isa == "neon" else cpu


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    return runnable_here(load_target(request.param).cpu)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def run(function: Any, arguments: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    with lowering():
        library = tvm.compile(IRModule({"main": function}), target=load_target("host").tvm_target())
    result = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
    library["main"](*(tvm.runtime.tensor(a) for a in arguments), result)
    return result.numpy()


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype="float32")


def conv_reference(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, workload: ConvWorkload
) -> np.ndarray:
    """ONNX Runtime's convolution of NCHW `x`, then ReLU6, as NHWC."""
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        strides=workload.stride,
        dilations=workload.dilation,
        pads=workload.padding,
        group=workload.groups,
    )
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.clip(y, 0, 6).transpose(0, 2, 3, 1)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [(49, 64, 40), (25, 24, 8), (9, 13, 24), (1, 40, 1000), (3, 7, 5), (113, 16, 48)],
)
def test_matmul_equals_numpy(
    cpu: Cpu, rng: np.random.Generator, rows: int, depth: int, columns: int
) -> None:
    workload = MatmulWorkload(rows=rows, depth=depth, columns=columns, epilogue=RELU6)
    plan = plan_matmul(workload, cpu)
    x, w, bias = normal(rng, rows, depth), normal(rng, depth, columns), normal(rng, columns)
    found = run(write_matmul(workload, plan), [x, pack_matmul(w, plan), bias], (rows, columns))
    assert_close(found, np.clip(x @ w + bias, 0, 6))


def test_matmul_adds_a_residual_before_the_bounds(rng: np.random.Generator) -> None:
    epilogue = Epilogue(residual=True, low=0.0)
    workload = MatmulWorkload(rows=10, depth=8, columns=24, epilogue=epilogue)
    plan = plan_matmul(workload, load_target("host").cpu)
    x, w, residual = normal(rng, 10, 8), normal(rng, 8, 24), normal(rng, 10, 24)
    found = run(write_matmul(workload, plan), [x, pack_matmul(w, plan), residual], (10, 24))
    assert_close(found, np.maximum(x @ w + residual, 0))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "channels", "batch"), [(7, 40, 1), (5, 24, 2), (3, 8, 1), (17, 16, 1)]
)
def test_depthwise_equals_onnx_runtime(
    cpu: Cpu,
    rng: np.random.Generator,
    size: int,
    channels: int,
    batch: int,
    stride: int,
    kernel: int,
) -> None:
    workload = depthwise(size, channels, stride, kernel, batch)
    plan = plan_depthwise(workload, cpu)
    x, w = normal(rng, batch, channels, size, size), normal(rng, channels, 1, kernel, kernel)
    bias = normal(rng, channels)
    expected = conv_reference(x, w, bias, workload)
    found = run(
        write_depthwise(workload, plan), [nhwc(x), pack_depthwise(w, plan), bias], expected.shape
    )
    assert_close(found, expected)


def depthwise(size: int, channels: int, stride: int, kernel: int, batch: int = 1) -> ConvWorkload:
    return ConvWorkload(
        batch=batch,
        height=size,
        width=size,
        in_channels=channels,
        out_channels=channels,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4,
        groups=channels,
        epilogue=RELU6,
    )


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"height": 9, "width": 13, "batch": 2},
        {"kernel": (1, 1), "padding": (0, 0, 0, 0)},
        {"kernel": (5, 3), "padding": (2, 1, 2, 1)},
        {"stride": (1, 1), "dilation": (2, 2), "padding": (2, 2, 2, 2)},
        # Asymmetric, as TensorFlow's SAME pads a stride of 2.
        {"padding": (0, 0, 1, 1)},
        {"out_channels": 5, "in_channels": 20},
    ],
    ids=str,
)
def test_convolution_equals_onnx_runtime(
    cpu: Cpu, rng: np.random.Generator, layout: Any, change: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {
        "batch": 1,
        "height": 17,
        "width": 17,
        "in_channels": 3,
        "out_channels": 24,
        "kernel": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1, 1, 1),
    }
    workload = ConvWorkload(**(fields | change), input_layout=layout, epilogue=RELU6)
    plan = plan_conv(workload, cpu)
    x = normal(rng, workload.batch, workload.in_channels, workload.height, workload.width)
    w = normal(rng, workload.out_channels, workload.in_channels, *workload.kernel)
    bias = normal(rng, workload.out_channels)
    expected = conv_reference(x, w, bias, workload)
    found = run(
        write_conv(workload, plan),
        [x if layout == "NCHW" else nhwc(x), pack_conv(w, plan), bias],
        expected.shape,
    )
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("size", "channels", "columns", "stride", "batch"),
    [(28, 24, 40, 1, 1), (28, 32, 48, 2, 1), (15, 16, 24, 1, 2), (17, 8, 16, 2, 1)],
)
def test_separable_equals_its_two_halves(
    cpu: Cpu,
    rng: np.random.Generator,
    size: int,
    channels: int,
    columns: int,
    stride: int,
    batch: int,
) -> None:
    first = depthwise(size, channels, stride, 3, batch)
    pixels = batch * first.out_height * first.out_width
    second = MatmulWorkload(rows=pixels, depth=channels, columns=columns, epilogue=RELU6)
    workload = SeparableWorkload(depthwise=first, pointwise=second)
    # With more cores than blocks of rows the two are left apart.
    plan = plan_separable(workload, cpu.model_copy(update={"cores": 2}))
    assert plan is not None
    x, w = normal(rng, batch, channels, size, size), normal(rng, channels, 1, 3, 3)
    bias, matrix, bias2 = (
        normal(rng, channels),
        normal(rng, channels, columns),
        normal(rng, columns),
    )
    between = conv_reference(x, w, bias, first).reshape(-1, channels)
    shape = (batch, first.out_height, first.out_width, columns)
    found = run(
        write_separable(workload, plan, y_shape=shape),
        [
            nhwc(x),
            pack_depthwise(w, plan.depthwise),
            bias,
            pack_matmul(matrix, plan.pointwise),
            bias2,
        ],
        shape,
    )
    assert_close(found, np.clip(between @ matrix + bias2, 0, 6).reshape(shape))


@pytest.mark.parametrize(
    ("batch", "pixels", "channels"), [(1, 49, 40), (2, 9, 24), (1, 1, 8), (1, 10, 3)]
)
def test_pool_equals_numpy(
    cpu: Cpu, rng: np.random.Generator, batch: int, pixels: int, channels: int
) -> None:
    workload = PoolWorkload(batch=batch, pixels=pixels, channels=channels)
    x = normal(rng, batch, pixels, channels)
    kernel = write_pool(
        workload, plan_pool(workload, cpu), x_shape=x.shape, y_shape=(batch, channels)
    )
    assert_close(run(kernel, [x], (batch, channels)), x.mean(axis=1))


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize("rows", [49, 196, 3136])
def test_register_tile_fits_the_register_file(name: str, rows: int) -> None:
    cpu = load_target(name).cpu
    for columns in (8, 24, 64, 1000):
        workload = MatmulWorkload(rows=rows, depth=64, columns=columns, epilogue=RELU6)
        plan = plan_matmul(workload, cpu)
        assert plan.row_tile * plan.column_vectors < cpu.vector_registers
        assert plan.lanes == cpu.vector_bits // 32


def test_packing_keeps_every_weight_once(rng: np.random.Generator) -> None:
    workload = MatmulWorkload(rows=10, depth=6, columns=37)
    plan = plan_matmul(workload, load_target("rpi4").cpu)
    matrix = np.arange(6 * 37, dtype="float32").reshape(6, 37)
    assert sorted(pack_matmul(matrix, plan)) == list(range(6 * 37))
