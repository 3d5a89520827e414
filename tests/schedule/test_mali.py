from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet._tvm import IRModule, relax, tvm
from tvm_mobilenet.errors import CompileError
from tvm_mobilenet.schedule.dispatch import schedule_rest
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.schedule.mali.occupancy import (
    choose_group,
    group_limit,
    launch_fault,
    threads_in_flight,
)
from tvm_mobilenet.schedule.mali.predict import predict_kernel, predict_selection
from tvm_mobilenet.schedule.mali.product import GpuProductPlan, pack_product, plan_product
from tvm_mobilenet.schedule.mali.select import select_gpu_kernels
from tvm_mobilenet.schedule.select import KernelCall
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
)
from tvm_mobilenet.targets import load_target

GPUS = ["rk3399-mali", "rk3588-mali", "vim3-mali", "opencl-generic"]
RELU6 = Epilogue(bias=True, low=0, high=6)


def gpu_of(name):
    return load_target(name).gpu


def conv(**changes):
    given: dict[str, Any] = {
        "batch": 1,
        "height": 14,
        "width": 14,
        "in_channels": 64,
        "out_channels": 64,
    }
    given |= {"kernel": (3, 3), "padding": (1, 1, 1, 1), "epilogue": RELU6}
    return ConvWorkload(**{**given, **changes})


WORKLOADS = [
    MatmulWorkload(rows=12544, depth=32, columns=64, epilogue=RELU6),
    MatmulWorkload(rows=49, depth=1024, columns=1024, epilogue=RELU6),
    MatmulWorkload(rows=1, depth=1024, columns=1001, epilogue=Epilogue(bias=True)),
    MatmulWorkload(rows=1, depth=3, columns=1),
    GatedWorkload(batch=2, pointwise=MatmulWorkload(rows=98, depth=480, columns=80)),
    PoolWorkload(batch=1, pixels=49, channels=1280),
    PoolWorkload(batch=3, pixels=1, channels=5),
    conv(height=224, width=224, in_channels=3, out_channels=32, stride=(2, 2), input_layout="NCHW"),
    conv(in_channels=48, out_channels=96),
    conv(groups=64),
    conv(groups=64, kernel=(5, 5), padding=(2, 2, 2, 2), stride=(2, 2)),
    conv(groups=64, dilation=(2, 2), padding=(2, 2, 2, 2)),
    conv(height=3, width=1, in_channels=5, out_channels=5, groups=5),
]


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: type(w).__name__)
def test_a_computed_plan_is_within_the_device(name, workload):
    gpu = gpu_of(name)
    plan = families.compute_plan(workload, gpu)
    assert families.plan_fault(workload, plan, gpu) is None
    assert families.item_cost(workload, plan).registers <= gpu.most_registers
    items = plan.group[0] * plan.group[1]
    assert items <= group_limit(families.item_cost(workload, plan).registers, gpu)


def test_tiles_follow_the_register_file():
    product = MatmulWorkload(rows=196, depth=512, columns=512, epilogue=RELU6)
    gpu = gpu_of("rk3399-mali")
    few = gpu.model_copy(update={"most_registers": 24})
    plan, small = (plan_product(product, device) for device in (gpu, few))
    assert small.row_tile * small.column_vectors < plan.row_tile * plan.column_vectors
    assert "registers" in (families.plan_fault(product, plan, few) or "")


def test_registers_halve_what_a_core_holds():
    gpu = gpu_of("rk3399-mali")
    assert [threads_in_flight(n, gpu) for n in (16, 17, 32, 33, 64, 65)] == [
        256, 128, 128, 64, 64, 0,
    ]  # fmt: skip
    assert launch_fault((64, 2), 40, gpu) is not None
    assert launch_fault((64, 1), 40, gpu) is None


def test_groups_have_no_more_than_is_needed():
    gpu = gpu_of("rk3588-mali")
    assert choose_group((1, 1), 20, gpu) == (1, 1)
    x, y = choose_group((3, 1000), 20, gpu)
    assert x <= 4
    assert x * y == 64


def test_panels_end_with_the_columns():
    plan = GpuProductPlan(
        row_tile=1, column_vectors=1, lanes=4, depth_lanes=1, depth_step=1, group=(1, 1),
        order="columns", weights="panels",
    )  # fmt: skip
    weights = np.arange(12, dtype="float32").reshape(2, 6)
    assert pack_product(weights, plan).tolist() == [
        0,
        1,
        2,
        3,
        6,
        7,
        8,
        9,
        2,
        3,
        4,
        5,
        8,
        9,
        10,
        11,
    ]
    assert pack_product(weights, replace(plan, weights="rows")).tolist() == list(range(12))


def source(target, function):
    with lowering():
        built = tvm.compile(
            IRModule({"main": function.with_attr("global_symbol", "main")}),
            target=target.tvm_target(),
        )
    return built.mod.imports[0].inspect_source()


@pytest.mark.parametrize("workload", WORKLOADS[:1] + WORKLOADS[7:10], ids=lambda w: str(w.macs))
def test_kernels_load_vectors_and_stage_nothing(workload):
    target = load_target("rk3399-mali")
    text = source(
        target, families.write(workload, families.compute_plan(workload, gpu_of(target.name)))
    )
    assert "vload4" in text
    assert "vstore4" in text
    assert "barrier" not in text
    assert "__local" not in text


def test_half_is_summed_in_float_unless_asked_otherwise():
    target = load_target("rk3588-mali")
    product = MatmulWorkload(rows=49, depth=64, columns=64, epilogue=RELU6, dtype="float16")
    plan = families.compute_plan(product, gpu_of(target.name))
    text = source(target, families.write(product, plan))
    assert "vload8" in text
    assert "__global half*" in text
    assert re.search(r"float8 \w+\[1\]", text)
    halves = families.compute_plan(product, gpu_of(target.name), "float16")
    text = source(target, families.write(product, halves))
    assert "float8" not in text
    assert "half8" in text


def network(dtype="float32"):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 6, 6, 8), dtype))
    weight = relax.const(np.zeros((16, 1, 1, 8), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(
                relax.op.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="OHWI")
            )
            out = builder.emit_output(y)
        builder.emit_func_output(out)
    return builder.get()


def test_a_recorded_plan_beyond_the_device_is_refused_before_it_is_built():
    gpu = gpu_of("rk3399-mali")

    def recorded(_family, workload):
        return replace(families.compute_plan(workload, gpu), group=(256, 4))

    with pytest.raises(CompileError, match=r"work-group of 256 x 4 is not in 1 to"):
        select_gpu_kernels(network(), gpu, recorded)


def test_a_bool_argument_is_refused_by_name():
    x = tvm.te.placeholder((8,), name="mask", dtype="bool")
    y = tvm.te.compute((8,), lambda i: x[i].astype("float32"), name="y")
    mod = IRModule({"apply_mask": tvm.te.create_prim_func([x, y])})
    with pytest.raises(CompileError, match=r"kernel apply_mask: argument 'mask' is bool") as caught:
        schedule_rest(mod, set(), load_target("rk3399-mali"))
    assert "\n" not in str(caught.value)


def test_half_is_refused_where_the_device_has_none():
    target = load_target("opencl-generic")
    selection = select_gpu_kernels(network("float16"), gpu_of(target.name))
    with pytest.raises(CompileError, match=r"is float16, which .* does not compute"):
        schedule_rest(selection.mod, set(selection.kernels), target)


def test_a_prediction_is_the_tighter_of_two_limits():
    gpu = gpu_of("rk3399-mali")  # 25.6 G multiply-adds and 12.8 GB a second
    wide, thin = (
        MatmulWorkload(rows=196, depth=512, columns=512),
        MatmulWorkload(rows=1, depth=512, columns=512),
    )
    found = [
        predict_kernel(KernelCall("k", "pointwise", w, families.compute_plan(w, gpu)), gpu)
        for w in (wide, thin)
    ]
    assert [one.bound for one in found] == ["compute", "memory"]
    assert found[0].ms == pytest.approx(196 * 512 * 512 / 25.6e6)
    assert found[1].ms == pytest.approx(4 * (512 * 512 + 1024) / 12.8e6)


def test_every_kernel_of_a_network_is_predicted():
    gpu = gpu_of("rk3399-mali")
    (found,) = predict_selection(select_gpu_kernels(network(), gpu), gpu)
    assert (found.family, found.calls, found.macs) == ("pointwise", 1, 36 * 8 * 16)
    assert found.threads == threads_in_flight(found.registers, gpu)
