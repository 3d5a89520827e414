"""Kernels whose values do not fit the register file are told by their assembly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.tuning.integer_workloads import PRODUCT
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tuning.building import Builder
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.spills import innermost_loops, spilled_vectors

LOOP = """
.LBB0_1:
{}
        {} .LBB0_1
"""


@pytest.mark.parametrize(
    ("lines", "spills"),
    [
        (["str q0, [sp, #48]", "ldr q1, [sp, #48]"], 1),
        (["stp q0, q1, [sp, #32]", "ldr q1, [sp, #48]", "ldr q0, [sp, #32]"], 2),
        (["str q0, [x29, #-32]", "ldp q1, q2, [x29, #-48]"], 1),
        # Loaded alone, and an array on the stack.
        (["ldr q1, [sp, #48]", "ldr q2, [sp]"], 0),
        (["str q0, [x8, #48]", "ldr q1, [x8, #48]"], 0),
        # A whole number.
        (["str x0, [sp, #48]", "ldr x1, [sp, #48]"], 0),
    ],
)
def test_on_aarch64(lines: list[str], spills: int):
    text = LOOP.format("\n".join(f"        {line}" for line in lines), "b.ne")
    assert spilled_vectors(text) == spills


@pytest.mark.parametrize(
    ("lines", "spills"),
    [
        (["vmovups %zmm3, 64(%rsp)", "vpdpbusd 64(%rsp), %zmm1, %zmm2"], 1),
        (["vmovaps %ymm3, (%rsp)", "vmovaps (%rsp), %ymm4"], 1),
        (["vmovaps %ymm3, -96(%rbp)", "vaddps -96(%rbp), %ymm4, %ymm5"], 1),
        (["vaddps 64(%rsp), %ymm4, %ymm5", "vmovaps %ymm3, 96(%rsp)"], 0),
        (["vmovaps %ymm3, 64(%rsp,%rax,4)", "vmovaps 64(%rsp,%rax,4), %ymm3"], 0),
        (["movq %rax, 8(%rsp)", "movq 8(%rsp), %rax"], 0),
    ],
)
def test_on_x86(lines: list[str], spills: int):
    text = LOOP.format("\n".join(f"        {line}" for line in lines), "jne")
    assert len(innermost_loops(text)) == 1
    assert spilled_vectors(text) == spills


def test_a_build_says_so(tmp_path):
    """Four rows of sums of two products leave no registers for two turns of the depth at once."""
    target = load_target("rpi4")
    build = Builder(target.model_dump_json(by_alias=True), str(tmp_path))
    start: Any = Space(PRODUCT, target.cpu).start
    spills = {}
    for sums, unroll in ((4, 2), (2, 2)):
        plan = replace(start, sums=sums, unroll=unroll)
        request = {"workload": workload_to_json(PRODUCT), "plan": plan_to_json(plan)}
        spills[sums] = build(request)["spills"]
    assert spills[4] == 0
    assert spills[2] > 4
