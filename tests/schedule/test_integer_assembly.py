"""The integer instructions are there, and few others beside them, once LLVM is done."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.schedule import integer_cases as cases
from tests.schedule.test_assembly import busiest
from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.spills import innermost_loops


def assembly(case: cases.Case, spec: TargetSpec) -> str:
    with lowering():
        library = tvm.compile(IRModule({"main": case.function}), target=spec.tvm_target())
    return str(library.mod.inspect_source("asm"))


def pointwise(spec: TargetSpec) -> str:
    rng = np.random.default_rng(0)
    case = cases.matmul_case(rng, spec.cpu, (196, 256, 96), "uint8", narrow=True)
    return assembly(case, spec)


def test_sdot_takes_its_bytes_by_element() -> None:
    text = pointwise(load_target("rpi5"))
    loops = innermost_loops(text)
    dots, instructions = busiest(loops, "sdot")
    assert dots == 96
    assert instructions / dots <= 1.16
    assert ".4b[3]" in text


def test_widening_products_are_summed_before_they_are_widened_again() -> None:
    loops = innermost_loops(pointwise(load_target("rpi4")))
    widened, instructions = busiest(loops, "sadalp")
    (loop,) = [x for x in loops if sum(i.startswith("sadalp") for i in x) == widened][:1]
    products = sum(i.startswith(("smull", "smlal")) for i in loop)
    assert products == 4 * widened
    # 8 multiply-adds a product: 0.18 instructions for each, where a plain loop takes 0.25 and more.
    assert instructions / (8 * products) <= 0.18
    assert not [i for i in loop if "[sp" in i]


def test_matrix_products() -> None:
    loops = innermost_loops(pointwise(cases.with_i8mm()))
    products, instructions = busiest(loops, "smmla")
    assert products >= 32
    assert instructions / products <= 1.4


def test_vnni_on_512_bits() -> None:
    loops = innermost_loops(pointwise(load_target("x86-64-avx512-vnni")))
    dots, instructions = busiest(loops, "vpdpbusd")
    assert dots >= 12
    assert instructions / dots <= 1.7
    assert any("zmm" in i for loop in loops for i in loop if i.startswith("vpdpbusd"))


def test_vnni_on_256_bits() -> None:
    text = pointwise(cases.with_avx_vnni())
    assert len(re.findall(r"vpdpbusd\s.*%ymm", text)) >= 12
    assert "zmm" not in text


def test_vnni_asks_for_the_next_weights_while_it_multiplies() -> None:
    spec = load_target("x86-64-avx512-vnni")
    case = cases.matmul_case(np.random.default_rng(0), spec.cpu, (98, 512, 640), "uint8")
    assert (case.plan.outer, case.plan.prefetch) == ("columns", True)
    loops = innermost_loops(assembly(case, spec))
    dots, _ = busiest(loops, "vpdpbusd")
    loop = next(x for x in loops if sum(i.startswith("vpdpbusd") for i in x) == dots)
    assert sum(i.startswith("prefetcht1") for i in loop) == 1


def test_vnni_reads_windows_where_they_lie() -> None:
    spec = load_target("x86-64-avx512-vnni")
    case = cases.conv_case(np.random.default_rng(0), spec.cpu, (1, 56, 56, 3), 32, "uint8")
    loops = innermost_loops(assembly(case, spec))
    dots, _ = busiest(loops, "vpdpbusd")
    loop = next(x for x in loops if sum(i.startswith("vpdpbusd") for i in x) == dots)
    # Nine bytes of a row of the filter are three steps; each reads a pixel once.
    assert dots == 9 * case.plan.row_tile * case.plan.column_vectors
    assert sum(i.startswith("vpbroadcastd") for i in loop) <= 9 * case.plan.row_tile + 2
    # Filters may wait on the stack, totals may not go there.
    assert not [i for i in loop if i.endswith("(%rsp)")]


def test_avx2_never_saturates() -> None:
    text = pointwise(load_target("x86-64-avx2"))
    products, instructions = busiest(innermost_loops(text), "vpmaddwd")
    assert products == 12
    assert instructions <= 36
    assert "vpmaddubsw" not in text


@pytest.mark.parametrize("target", ["rpi4", "rpi5"])
def test_depthwise_on_neon(target: str) -> None:
    spec = load_target(target)
    case = cases.depthwise_case(np.random.default_rng(0), spec.cpu, (1, 28, 28, 32), "int8")
    loops = innermost_loops(assembly(case, spec))
    widened, instructions = busiest(loops, "saddw")
    # Extreme pairs aside: 16 channels of 2 pixels, 5 additions of 16 bits to 32 in each quarter.
    assert widened in (40, 72)
    assert instructions <= 140 if widened == 40 else 190


def test_depthwise_with_vnni_takes_four_taps_at_once() -> None:
    target = load_target("x86-64-avx512-vnni")
    case = cases.depthwise_case(np.random.default_rng(0), target.cpu, (1, 28, 28, 128), "uint8")
    assert case.plan.kind == "dots"
    loops = innermost_loops(assembly(case, target))
    dots, instructions = busiest(loops, "vpdpbusd")
    outputs = case.plan.row_tile * case.plan.column_tile
    # Three rows of the filter for each of four vectors.
    assert dots == 12 * outputs
    assert instructions / dots <= 4.6
    (loop,) = [x for x in loops if sum(i.startswith("vpdpbusd") for i in x) == dots][:1]
    assert all("zmm" in i for i in loop if i.startswith("vpdpbusd"))
    # Narrowed four vectors at a time.
    assert sum(i.startswith("vpackuswb") for i in loop) == outputs
    assert not [i for i in loop if i.startswith(("vpmovdb", "vpmovusdb", "vpmovzx"))]


def test_depthwise_with_vnni_on_256_bits() -> None:
    target = cases.with_avx_vnni()
    case = cases.depthwise_case(np.random.default_rng(0), target.cpu, (1, 28, 28, 128), "uint8")
    assert (case.plan.kind, case.plan.lanes) == ("dots", 32)
    text = assembly(case, target)
    assert len(re.findall(r"vpdpbusd\s.*%ymm", text)) >= 12
    assert len(re.findall(r"vpackuswb\s.*%ymm", text)) >= case.plan.column_tile
    assert "zmm" not in text
