"""Every family of GPU kernels on the OpenCL device there is, against numpy and ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet._tvm import IRModule, relax, tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.schedule.mali.fallback import schedule_gpu_fallback
from tvm_mobilenet.schedule.mali.product import plan_product
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
)
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.reference import make_operands, output_shape, reference

pytestmark = pytest.mark.opencl

RELATIVE = 1e-5
SWISH = Epilogue(bias=True, activation="hard-swish")
RELU6 = Epilogue(bias=True, low=0, high=6)
RESIDUAL = Epilogue(bias=True, residual=True)


def gpu_of(name):
    return load_target(name).gpu


def depthwise(size, stride, dilation, epilogue=RELU6):
    pad = dilation * (size - 1) // 2
    return ConvWorkload(
        batch=2, height=13, width=11, in_channels=19, out_channels=19, groups=19,
        kernel=(size, size), stride=(stride, stride), dilation=(dilation, dilation),
        padding=(pad, pad, pad, pad), epilogue=epilogue,
    )  # fmt: skip


def dense_conv(layout, channels, stride, epilogue):
    return ConvWorkload(
        batch=2, height=15, width=17, in_channels=channels, out_channels=13, kernel=(3, 3),
        stride=(stride, stride), padding=(0, 0, 1, 1), input_layout=layout, epilogue=epilogue,
    )  # fmt: skip


WORKLOADS = [
    MatmulWorkload(rows=51, depth=37, columns=29, epilogue=RELU6),
    MatmulWorkload(rows=3, depth=3, columns=3, epilogue=replace(SWISH, residual=True)),
    MatmulWorkload(rows=1, depth=1025, columns=1001, epilogue=Epilogue(bias=True)),
    depthwise(3, 1, 1),
    depthwise(3, 2, 1, SWISH),
    depthwise(5, 1, 1, RESIDUAL),
    depthwise(5, 2, 1),
    depthwise(3, 1, 2),
    depthwise(5, 1, 3),
    dense_conv("NCHW", 3, 2, SWISH),
    dense_conv("NHWC", 3, 2, RELU6),
    dense_conv("NHWC", 11, 1, RESIDUAL),
    dense_conv("NCHW", 11, 1, RELU6),
    PoolWorkload(batch=2, pixels=49, channels=37),
    PoolWorkload(batch=1, pixels=3, channels=2),
]


def run(device, mod, inputs, shape, dtype="float32"):
    with lowering():
        built = tvm.compile(mod, target=load_target("opencl-generic").tvm_target())
    arguments = [tvm.runtime.tensor(np.ascontiguousarray(a), device) for a in inputs]
    y = tvm.runtime.tensor(np.full(shape, np.nan, dtype), device)
    built.mod["main"](*arguments, y)
    return y.numpy()


def check(device, workload, plan):
    operands = make_operands(workload)
    function = families.write(workload, plan).with_attr("global_symbol", "main")
    inputs = [operands.x]
    if operands.weights is not None:
        inputs.append(families.pack(operands.weights, plan))
    inputs += [a for a in (operands.bias, operands.residual) if a is not None]
    shape = output_shape(workload)
    found = run(device, IRModule({"main": function}), inputs, shape)
    wanted = reference(workload, operands)
    assert np.abs(found - wanted).max() <= RELATIVE * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: f"{type(w).__name__}-{w.macs}")
def test_a_family_is_right_at_odd_sizes(device, workload):
    gpu = gpu_of("opencl-generic")
    check(device, workload, families.compute_plan(workload, gpu))


@pytest.mark.parametrize("target", ["rk3399-mali", "rk3588-mali"])
def test_a_plan_for_a_mali_is_right_anywhere(device, target):
    gpu = gpu_of(target)
    for workload in (WORKLOADS[0], WORKLOADS[4], WORKLOADS[11]):
        check(device, workload, families.compute_plan(workload, gpu))


def test_vectors_of_eight_and_either_order_are_right(device):
    product = MatmulWorkload(rows=51, depth=37, columns=29, epilogue=RELU6)
    plan = plan_product(product, gpu_of("opencl-generic"))
    cases: Any = [("rows", "rows", (8, 2)), ("panels", "columns", (3, 5))]
    for weights, order, group in cases:
        changed = replace(
            plan, lanes=8, depth_lanes=8, column_vectors=2, depth_step=2, row_tile=5,
            weights=weights, order=order, group=group,
        )  # fmt: skip
        check(device, product, changed)


def test_a_gate_scales_its_own_image(device):
    product = MatmulWorkload(rows=2 * 35, depth=21, columns=17, epilogue=SWISH)
    workload = GatedWorkload(batch=2, pointwise=product)
    plan = families.compute_plan(workload, gpu_of("opencl-generic"))
    operands = make_operands(product)
    assert operands.weights is not None
    gate = np.random.default_rng(1).random((2, 21), dtype=np.float32)
    function = families.write(workload, plan).with_attr("global_symbol", "main")
    inputs = [operands.x, gate, families.pack(operands.weights, plan), operands.bias]
    found = run(device, IRModule({"main": function}), inputs, (70, 17))
    scaled = replace(operands, x=operands.x * np.repeat(gate, 35, axis=0))
    wanted = reference(product, scaled)
    assert np.abs(found - wanted).max() <= RELATIVE * max(1.0, np.abs(wanted).max())


def test_what_no_family_computes_is_right_too(device):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 7, 9, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.max_pool2d(x, (3, 3), (2, 2), layout="NHWC"))
            z = builder.emit(relax.op.nn.softmax(y, -1))
            out = builder.emit_output(z)
        builder.emit_func_output(out)
    target = load_target("opencl-generic")
    from tvm_mobilenet.compiler import _build, _lower_rest

    mod = schedule_gpu_fallback(_lower_rest(builder.get(), target), set(), gpu_of(target.name))
    vm = relax.VirtualMachine(_build(mod, target), device)
    values = np.random.default_rng(2).standard_normal((2, 7, 9, 5), dtype=np.float32)
    found = vm["main"](tvm.runtime.tensor(values, device)).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), (1, 2))[:, ::2, ::2]
    peaks = np.exp(windows.max(axis=(-2, -1)))
    np.testing.assert_allclose(found, peaks / peaks.sum(-1, keepdims=True), rtol=RELATIVE)


@pytest.mark.torch
@pytest.mark.parametrize(
    "model",
    [
        "mobilenet_v1_0.25_128",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *(f"mobilenet_v1_{a}_128" for a in ("0.5", "0.75", "1.0")),
                *(f"mobilenet_v1_{a}_160" for a in ("0.25", "0.5", "0.75", "1.0")),
                "mobilenet_v1_1.0_224",
                "mobilenet_v2_0.35_96",
                "mobilenet_v3_small_1.0_224",
                "mobilenet_v3_large_1.0_224",
                "mobilenet_v4_conv_small_224",
            )
        ),
    ],
)
def test_a_model_agrees_with_onnx_runtime(device, model, tmp_path):
    from tvm_mobilenet.verify import verify
    from tvm_mobilenet.workflow import compile_model

    artifact = compile_model(model, out=tmp_path / "model", target="opencl-generic")
    assert artifact.manifest.schedule.fallback == 0
    report = verify(artifact.path, inputs=3)
    assert report.is_within
    for compared in report.comparisons:
        assert compared.relative_l2 <= RELATIVE
