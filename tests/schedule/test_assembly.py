"""What the inner loops look like once LLVM is done with them."""

from __future__ import annotations

import re

import pytest

from tvm_mobilenet._tvm import IRModule, PrimFunc, tvm
from tvm_mobilenet.schedule.depthwise import plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.matmul import plan_matmul, write_matmul
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.spills import innermost_loops

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
# The pointwise layers of MobileNetV1 at 224, one of each size: (pixels, in, out).
POINTWISE = [(12544, 32, 64), (3136, 128, 128), (784, 256, 256), (196, 512, 512), (49, 1024, 1024)]


def assembly(target_name: str, shape: tuple[int, int, int]) -> str:
    target = load_target(target_name)
    rows, depth, columns = shape
    workload = MatmulWorkload(rows=rows, depth=depth, columns=columns, epilogue=RELU6)
    return compiled(write_matmul(workload, plan_matmul(workload, target.cpu)), target_name)


def compiled(function: PrimFunc, target_name: str) -> str:
    target = load_target(target_name)
    with lowering():
        library = tvm.compile(IRModule({"main": function}), target=target.tvm_target())
    return str(library.mod.inspect_source("asm"))


def busiest(loops: list[list[str]], instruction: str) -> tuple[int, int]:
    """Return (multiply-adds, instructions) of the loop with the most multiply-adds."""
    counts = [(sum(i.startswith(instruction) for i in loop), len(loop)) for loop in loops]
    return max(counts, default=(0, 0))


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5"])
@pytest.mark.parametrize("shape", POINTWISE, ids=str)
def test_pointwise_on_neon_needs_few_instructions_for_each_multiply_add(
    target: str, shape: tuple[int, int, int]
) -> None:
    loops = innermost_loops(assembly(target, shape))
    multiply_adds, instructions = busiest(loops, "fmla")
    assert multiply_adds >= 192
    # Where the depth is written out as a whole, the loop is over tiles, bias to stores.
    is_whole = shape[1] <= 32
    assert instructions / multiply_adds <= (1.2 if is_whole else 1.08)
    (loop,) = [x for x in loops if sum(i.startswith("fmla") for i in x) == multiply_adds][:1]
    assert not [i for i in loop if "[sp" in i]
    assert is_whole or not [i for i in loop if i.startswith("st")]


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5"])
def test_depthwise_on_neon_loads_an_input_once_for_several_rows(target: str) -> None:
    spec = load_target(target)
    workload = ConvWorkload(
        batch=1,
        height=14,
        width=14,
        in_channels=512,
        out_channels=512,
        kernel=(3, 3),
        padding=(1, 1, 1, 1),
        groups=512,
        epilogue=RELU6,
    )
    plan = plan_depthwise(workload, spec.cpu)
    assert plan.row_tile >= 2
    loops = innermost_loops(compiled(write_depthwise(workload, plan), target))
    multiply_adds, instructions = busiest(loops, "fmla")
    outputs = plan.row_tile * plan.column_tile
    # The tile at a border: one column of taps is left out.
    assert multiply_adds == 9 * outputs - 3 * plan.row_tile
    assert instructions / outputs <= 17.5


def test_registers_are_neither_heap_memory_nor_written_back() -> None:
    text = assembly("rpi4", POINTWISE[2])
    kernels = text[text.index("main_compute_") :]
    # One piece of scratch memory for the packed rows, and nothing else.
    assert len(re.findall(r"\badrp\s+x\d+, :got:__TVMBackendAllocWorkspace", kernels)) == 1


def test_pointwise_on_neon_multiplies_by_lane() -> None:
    text = assembly("rpi4", POINTWISE[1])
    assert re.search(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[3\]", text)


@pytest.mark.parametrize(
    ("target", "register"), [("x86-64-avx2", "ymm"), ("x86-64-avx512-vnni", "zmm")]
)
@pytest.mark.parametrize("shape", POINTWISE, ids=str)
def test_pointwise_on_x86_keeps_its_accumulators_in_registers(
    target: str, register: str, shape: tuple[int, int, int]
) -> None:
    loops = innermost_loops(assembly(target, shape))
    multiply_adds, _ = busiest(loops, "vfmadd")
    assert multiply_adds >= 8
    (loop,) = [x for x in loops if sum(i.startswith("vfmadd") for i in x) == multiply_adds][:1]
    assert all(register in i for i in loop if i.startswith("vfmadd"))
    spills = [i for i in loop if i.startswith("vmov") and "(%rsp)" in i]
    assert not spills


def test_weights_that_pass_once_are_asked_for_ahead() -> None:
    """The next panel into the L2 cache; a single row's weights into the L1 cache."""
    assert "prefetcht1" in assembly("x86-64-avx512-vnni", (49, 512, 256))
    assert "prefetcht0" in assembly("x86-64-avx512-vnni", (1, 512, 256))


def test_pointwise_on_armv7_uses_neon() -> None:
    assert re.search(r"v(mla|fma)\.f32\s+q", assembly("generic-armv7", POINTWISE[1]))
