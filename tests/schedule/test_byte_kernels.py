"""Tables of one byte and the gate of squeeze-and-excite: every value, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.frontend.qdq_models import QdqGraph, run_onnx
from tests.schedule import integer_cases as cases
from tests.schedule.emulated import needs_emulator, run_emulated
from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.frontend.dataflow import Dataflow
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.integer.byte_functions import ByteFunctions
from tvm_mobilenet.schedule.integer.scale import plan_integer_scale, write_integer_scale
from tvm_mobilenet.schedule.integer.select import select_integer
from tvm_mobilenet.schedule.integer.table import plan_table, write_table
from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerDtype,
    IntegerScaleWorkload,
    IntegerTableWorkload,
)
from tvm_mobilenet.targets import TargetSpec, load_target

RPI4 = load_target("rpi4")
DTYPES: tuple[tuple[IntegerDtype, IntegerDtype], ...] = (("uint8", "int8"), ("int8", "uint8"))


def scale_case(
    rng: np.random.Generator,
    spec: TargetSpec,
    shape: tuple[int, int, int, int],
    dtypes: tuple[IntegerDtype, IntegerDtype],
) -> cases.Case:
    gate_shape = (shape[0], 1, 1, shape[3])
    x = cases.values(rng, shape, dtypes[0])
    gate = cases.values(rng, gate_shape, dtypes[1])
    zeros = [RANGES[dtype][0] + offset for dtype, offset in zip(dtypes, (30, 0), strict=True)]
    factor = np.float32(0.0041)
    workload = IntegerScaleWorkload(
        batch=shape[0],
        pixels=shape[1] * shape[2],
        channels=shape[3],
        x_dtype=dtypes[0],
        x_zero_point=zeros[0],
        gate_dtype=dtypes[1],
        gate_zero_point=zeros[1],
        factor=float(factor),
        requantize=cases.requantize_for(dtypes[0], bounded=True),
    )
    plan = plan_integer_scale(workload, spec.cpu)
    product = (x.astype(np.int32) - zeros[0]) * (gate.astype(np.int32) - zeros[1])
    requantize = workload.requantize
    steps = np.rint(product.astype(np.float32) * factor) + np.float32(requantize.zero_point)
    expected = np.clip(steps, requantize.low, requantize.high).astype(requantize.dtype)
    function = write_integer_scale(workload, plan, x_shape=shape, gate_shape=gate_shape)
    return cases.Case(function, [x, gate], expected, plan)


def table_case(
    rng: np.random.Generator, spec: TargetSpec, elements: int, dtypes: tuple[IntegerDtype, ...]
) -> cases.Case:
    x = np.resize(np.arange(256, dtype=np.uint8), elements).view(dtypes[0])
    rng.shuffle(x)
    table = cases.values(rng, (256,), dtypes[1])
    workload = IntegerTableWorkload(elements=elements, x_dtype=dtypes[0], y_dtype=dtypes[1])
    plan = plan_table(workload, spec.cpu)
    function = write_table(workload, plan, shape=(elements,))
    return cases.Case(function, [x, table], table[x.view(np.uint8)], plan)


@pytest.mark.parametrize("shape", [(2, 3, 5, 40), (1, 7, 7, 13)])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_gates_here(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    dtypes: tuple[IntegerDtype, IntegerDtype],
) -> None:
    spec = load_target("host")
    case = scale_case(rng, spec, shape, dtypes)
    with lowering():
        library = tvm.compile(IRModule({"main": case.function}), target=spec.tvm_target())
    y = tvm.runtime.tensor(np.zeros_like(case.expected))
    library["main"](*map(tvm.runtime.tensor, case.arguments), y)
    np.testing.assert_array_equal(y.numpy(), case.expected)


@pytest.mark.parametrize("kind", ["gate", "table"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.arm
def test_on_aarch64(
    rng: np.random.Generator,
    runner_object: Path,
    tmp_path: Path,
    kind: str,
    dtypes: tuple[IntegerDtype, IntegerDtype],
) -> None:
    if kind == "gate":
        case = scale_case(rng, RPI4, (2, 3, 5, 40), dtypes)
    else:
        case = table_case(rng, RPI4, 16 * 47 + 5, dtypes)
    output = np.zeros_like(case.expected)
    found = run_emulated(case.function, case.arguments, output, RPI4, runner_object, tmp_path)
    np.testing.assert_array_equal(found, case.expected)


for mark in needs_emulator[1:]:
    test_on_aarch64 = mark(test_on_aarch64)


def test_sixteen_look_ups_take_four_instructions(rng: np.random.Generator) -> None:
    case = table_case(rng, RPI4, 4096, ("uint8", "uint8"))
    with lowering():
        library = tvm.compile(IRModule({"main": case.function}), target=RPI4.tvm_target())
    text = str(library.mod.inspect_source("asm"))
    assert (text.count("\ttbl\t"), text.count("\ttbx\t")) == (1, 3)


def activation(graph: QdqGraph, x: str, *, is_split: bool) -> str:
    """Hard-swish of the quantized `x`, as one operator or as a product with a quantized gate."""
    if not is_split:
        return graph.node("HardSwish", [x], "h")
    gate = graph.node("HardSigmoid", [x], "g", alpha=1 / 6, beta=0.5)
    return graph.node("Mul", [x, graph.through(gate, "gd", 1 / 255, np.uint8(0))], "h")


@pytest.mark.parametrize("is_split", [False, True])
def test_an_activation_is_a_table(is_split: bool) -> None:
    graph = QdqGraph()
    x = graph.through("x", "xd", 0.05, np.uint8(93))
    graph.quantize(activation(graph, x, is_split=is_split), "y", 0.03, np.uint8(12))
    model = graph.model((1, 1, 16, 16), "y", (1, 1, 16, 16), "uint8")
    mod = canonicalize(import_onnx(model))
    flow = Dataflow(mod)
    functions = ByteFunctions(flow.definitions())
    (out,) = flow.outputs()
    source = functions.source_of(out)
    assert source is not None
    assert source.name.startswith("xd_q")
    image = ((np.arange(256) - 93) * np.float32(0.05)).astype(np.float32).reshape(1, 1, 16, 16)
    expected = run_onnx(model, image).reshape(-1)
    off = functions.table(out, source).astype(int) - expected.astype(int)
    # One step, where ONNX Runtime's fused hard-swish rounds in another order.
    assert np.abs(off).max() <= 1
    assert np.count_nonzero(off) <= 3

    selected, kernels = select_integer(mod, RPI4.cpu)
    assert "int8_table" in {kernel.family for kernel in kernels}
    assert len(Dataflow(selected).bindings) == 2  # the input quantized, and the table
    _, elsewhere = select_integer(mod, load_target("x86-64-avx2").cpu)
    assert "int8_table" not in {kernel.family for kernel in elsewhere}


def test_what_reads_more_than_one_byte_is_no_table() -> None:
    graph = QdqGraph()
    a = graph.through("x", "ad", 0.05, np.uint8(93))
    b = graph.through("x", "bd", 0.02, np.uint8(10))
    graph.quantize(graph.node("Mul", [a, b], "m"), "y", 0.03, np.uint8(12))
    mod = canonicalize(import_onnx(graph.model((1, 1, 16, 16), "y", (1, 1, 16, 16), "uint8")))
    flow = Dataflow(mod)
    (out,) = flow.outputs()
    assert ByteFunctions(flow.definitions()).source_of(out) is None
