"""What the inner loops look like once LLVM is done with them."""

from __future__ import annotations

import re

import pytest

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.matmul import plan_matmul, write_matmul
from tvm_mobilenet.schedule.workload import Epilogue, MatmulWorkload
from tvm_mobilenet.targets import load_target

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)
# The pointwise layers of MobileNetV1 at 224, one of each size: (pixels, in, out).
POINTWISE = [(12544, 32, 64), (3136, 128, 128), (784, 256, 256), (196, 512, 512), (49, 1024, 1024)]


def assembly(target_name: str, shape: tuple[int, int, int]) -> str:
    target = load_target(target_name)
    rows, depth, columns = shape
    workload = MatmulWorkload(rows=rows, depth=depth, columns=columns, epilogue=RELU6)
    function = write_matmul(workload, plan_matmul(workload, target.cpu))
    with lowering():
        library = tvm.compile(IRModule({"main": function}), target=target.tvm_target())
    return str(library.mod.inspect_source("asm"))


def innermost_loops(text: str) -> list[list[str]]:
    """Return the instructions of every loop that holds no other: label to backward branch."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        label = re.match(r"\s*(\.L\w+):", line)
        if label:
            labels[label.group(1)] = number
            continue
        branch = re.match(r"\s+(?:b\.\w+|cbn?z|tbn?z|j\w+)\s.*?(\.L\w+)", line)
        if branch is None or branch.group(1) not in labels:
            continue
        start = labels[branch.group(1)]
        body = lines[start + 1 : number + 1]
        if any(re.match(r"\s*\.L\w+:", inner) for inner in body):
            continue
        loops.append([inner.strip() for inner in body if re.match(r"\s+[a-z]", inner)])
    return loops


def busiest(loops: list[list[str]], instruction: str) -> tuple[int, int]:
    """Return (multiply-adds, instructions) of the loop with the most multiply-adds."""
    counts = [(sum(i.startswith(instruction) for i in loop), len(loop)) for loop in loops]
    return max(counts, default=(0, 0))


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5"])
@pytest.mark.parametrize("shape", POINTWISE, ids=str)
def test_pointwise_on_neon_needs_few_instructions_for_each_multiply_add(
    target: str, shape: tuple[int, int, int]
) -> None:
    multiply_adds, instructions = busiest(innermost_loops(assembly(target, shape)), "fmla")
    assert multiply_adds >= 48
    assert instructions / multiply_adds <= 1.3


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


def test_pointwise_on_armv7_uses_neon() -> None:
    assert re.search(r"v(mla|fma)\.f32\s+q", assembly("generic-armv7", POINTWISE[1]))
