"""Products of bfloat16: the kernel's arithmetic here, its instruction in the object code.

The processor at hand need not have the instruction: the kernel is run with what the instruction
computes spelled out, and compiled with the instruction for the target that has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.compiler import schedule_onnx
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.host import detect_host
from tvm_mobilenet.precision import Precision
from tvm_mobilenet.schedule.bfloat16_matmul import (
    can_multiply_pairs,
    pack_bfloat_matmul,
    plan_bfloat_matmul,
    write_bfloat_matmul,
)
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.workload import Epilogue, MatmulWorkload
from tvm_mobilenet.targets import TargetSpec, load_target

TARGET = load_target("x86-64-avx512-bf16")
HOST = detect_host()
FULL = Epilogue(bias=True, residual=True, activation="hard-swish", high=3.0)


def build(function: Any, target: TargetSpec) -> Any:
    with lowering():
        return tvm.compile(IRModule({"main": function}), target=target.tvm_target())


@pytest.mark.skipif(HOST.cpu.isa != "avx512", reason="this processor has no AVX-512")
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "epilogue"),
    # Rows that tiles do not divide, a last panel that is narrower, a vector.
    [(37, 64, 48, FULL), (49, 32, 80, Epilogue()), (1, 128, 1008, Epilogue(bias=True))],
)
def test_sums_are_float32(
    rng: np.random.Generator, rows: int, depth: int, columns: int, epilogue: Epilogue
) -> None:
    workload = MatmulWorkload(rows=rows, depth=depth, columns=columns, epilogue=epilogue)
    plan = plan_bfloat_matmul(workload, TARGET.cpu)
    kernel = write_bfloat_matmul(
        workload, plan, x_shape=(rows, depth), y_shape=(rows, columns), dot="spelled"
    )
    x, w, residual = (
        rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        for shape in ((rows, depth), (depth, columns), (rows, columns))
    )
    bias = rng.standard_normal(columns).astype("float32")
    arguments = [x, pack_bfloat_matmul(w.astype("float32"), plan)]
    total = x.astype("float64") @ w.astype("float64")
    if epilogue.bias:
        arguments.append(bias)
        total = total + bias
    if epilogue.residual:
        arguments.append(residual)
        total = total + residual.astype("float64")
    if epilogue.activation == "hard-swish":
        total = total * np.clip(total / 6 + 0.5, 0, 1)
    total = np.clip(total, epilogue.low, epilogue.high)
    y = tvm.runtime.tensor(np.zeros((rows, columns), ml_dtypes.bfloat16))
    build(kernel, HOST)["main"](*map(tvm.runtime.tensor, arguments), y)
    # Half a step of 8 bits, and what float32 sums lose where they cancel.
    off = np.abs(y.numpy().astype("float64") - total)
    assert (off <= 2**-8 * np.abs(total) + 1e-4).all()


def test_the_instructions_are_there() -> None:
    workload = MatmulWorkload(rows=49, depth=64, columns=64, epilogue=FULL)
    plan = plan_bfloat_matmul(workload, TARGET.cpu)
    kernel = write_bfloat_matmul(workload, plan, x_shape=(49, 64), y_shape=(49, 64))
    text = str(build(kernel, TARGET).mod.inspect_source("asm"))
    tiles = plan.row_tile * plan.column_vectors
    assert text.count("vdpbf16ps") >= tiles
    assert text.count("vcvtneps2bf16") >= tiles
    # Neither called nor spilled: the functions are inlined into the kernel.
    assert "tvm_mobilenet_bfloat16" not in text


@pytest.mark.parametrize(("depth", "columns"), [(63, 64), (64, 40)])
def test_other_shapes_are_left_to_float32(depth: int, columns: int) -> None:
    workload = MatmulWorkload(rows=49, depth=depth, columns=columns)
    assert not can_multiply_pairs(workload, TARGET.cpu)


def test_a_model_multiplies_pairs(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx("mobilenet_v1_0.25_32", out=path, num_classes=32)
    scheduled = schedule_onnx(path, TARGET, precision=Precision("bfloat16"))
    families = [layer.family for layer in scheduled.layers]
    assert families.count("pointwise") == 13
    assert families.count("dense") == 1
    assert families.count("depthwise") == 13
    assert "separable" not in families
    text = str(scheduled.mod)
    # 12 of the 13: the first has 8 channels of input and 16 of output, a pair of vectors too.
    assert "tvm_mobilenet_bfloat16_dot" in text
