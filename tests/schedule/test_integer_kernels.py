"""Every integer kernel against exact integer arithmetic, on this machine.

The plans of processors with VNNI run with the instruction itself where this machine has it, on 512
and on 256 bits. Elsewhere it is spelled out in plain TIR: everything but the instruction is then
what that processor would run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedule import integer_cases as cases
from tvm_mobilenet._tvm import IRModule, tirx, tvm
from tvm_mobilenet.compute_thread import ComputeThread
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.integer.depthwise_dots import filter_blocks, pack_filters
from tvm_mobilenet.schedule.integer.matmul import plan_integer_matmul, split_weights
from tvm_mobilenet.schedule.integer.workload import IntegerMatmulWorkload
from tvm_mobilenet.schedule.intrinsics import x86
from tvm_mobilenet.schedule.intrinsics.vectors import widen
from tvm_mobilenet.targets import Cpu, load_target


def flags() -> set[str]:
    """Return what this processor says it has."""
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()


HAS_AVX512_VNNI = "avx512_vnni" in flags()
HAS_VNNI = HAS_AVX512_VNNI or "avx_vnni" in flags()

CPUS = [
    "x86-64-avx2",
    # Spelled out on 512 bits it takes minutes of compiling.
    pytest.param("x86-64-avx512-vnni", marks=() if HAS_AVX512_VNNI else pytest.mark.slow),
    "avx-vnni",
    pytest.param("generic-armv7", marks=pytest.mark.slow),
]


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cpu:
    if not (HAS_VNNI if request.param == "avx-vnni" else HAS_AVX512_VNNI):
        monkeypatch.setattr(x86, "dot", plain_dot)
    if request.param == "avx-vnni":
        return cases.with_avx_vnni().cpu
    found = load_target(request.param).cpu
    if found.isa == "neon":
        pytest.skip("this machine is none of x86")
    return found


def plain_dot(total: Any, values: Any, weights: Any, lanes: int) -> Any:
    """What VPDPBUSD is documented to do, lane by lane."""
    for byte in range(4):
        index = list(range(byte, 4 * lanes, 4))
        left = widen(tirx.Shuffle([values], index), "int32", lanes)
        total = total + left * widen(tirx.Shuffle([weights], index), "int32", lanes)
    return total


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def check(case: cases.Case) -> None:
    with lowering():
        mod = IRModule({"main": case.function})
        library = tvm.compile(mod, target=load_target("host").tvm_target())
    result = tvm.runtime.tensor(np.zeros_like(case.expected))
    library["main"](*(tvm.runtime.tensor(a) for a in case.arguments), result)
    np.testing.assert_array_equal(result.numpy(), case.expected)


@pytest.mark.parametrize(
    ("size", "dtype", "extreme"),
    # Tails of rows and columns, a depth of few steps, one row, sums near the end of the range.
    [
        ((49, 64, 40), "int8", False),
        ((13, 24, 37), "uint8", True),
        ((13, 24, 37), "int8", True),
        ((1, 256, 100), "uint8", False),
    ],
)
def test_matmul(
    rng: np.random.Generator, cpu: Cpu, size: tuple[int, int, int], dtype: Any, extreme: bool
) -> None:
    check(cases.matmul_case(rng, cpu, size, dtype, extreme=extreme))


def test_matmul_whose_result_stays_float(rng: np.random.Generator) -> None:
    cpu = load_target("x86-64-avx2").cpu
    check(cases.matmul_case(rng, cpu, (3, 64, 21), "uint8", floats=True))


def test_matmul_cut_among_threads(rng: np.random.Generator) -> None:
    cpu = load_target("x86-64-avx2").cpu.model_copy(update={"cores": 3})
    case = cases.matmul_case(rng, cpu, (785, 128, 264), "int8")
    assert case.plan.is_parallel
    check(case)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 14, 14, 32), {}),
        ((2, 9, 13, 24), {"stride": 2, "extreme": True}),
        ((1, 11, 8, 40), {"kernel": 5, "stride": 2}),
        ((1, 16, 16, 16), {"stride": 2, "padding": (0, 0, 1, 1)}),
        # Whole planes and a part of one; a filter wider than a quad of columns.
        ((1, 7, 6, 96), {}),
        ((1, 9, 9, 64), {"kernel": 5}),
    ],
)
def test_depthwise(
    rng: np.random.Generator, cpu: Cpu, shape: tuple[int, int, int, int], options: dict[str, Any]
) -> None:
    dtype: Any = "uint8" if shape[1] % 2 else "int8"
    check(cases.depthwise_case(rng, cpu, shape, dtype, **options))


@pytest.mark.parametrize(
    ("shape", "channels", "options"),
    [
        ((1, 32, 32, 3), 24, {}),
        ((2, 9, 21, 3), 16, {"padding": (0, 0, 1, 1), "extreme": True}),
        # A 1x1 kernel that strides, and a depth that is no multiple of anything.
        ((1, 10, 10, 16), 8, {"kernel": 1, "padding": (0, 0, 0, 0)}),
        ((1, 8, 8, 7), 10, {"stride": 1}),
        # A row of the filter of many steps, and more columns than a panel has.
        ((1, 6, 5, 40), 88, {"stride": 1}),
    ],
)
def test_convolution(
    rng: np.random.Generator,
    cpu: Cpu,
    shape: tuple[int, int, int, int],
    channels: int,
    options: dict[str, Any],
) -> None:
    dtype: Any = "uint8" if shape[1] % 2 else "int8"
    check(cases.conv_case(rng, cpu, shape, channels, dtype, **options))


@pytest.mark.parametrize("step", [0.0078125, 0.0186584, 1.9999999, 0.9999999, 3.7e-6])
def test_quantizing_rounds_quotients_as_a_division_does(step: float) -> None:
    rng = np.random.default_rng(5)
    whole = np.float32(step) * rng.integers(-20, 280, 2000).astype(np.float32)
    halves = whole + np.float32(step) * np.float32(0.5)
    near = [np.nextafter(halves, side, dtype=np.float32) for side in (-np.inf, np.inf)]
    far = np.array([0, -0.0, 3e38, -3e38, np.inf, -np.inf, 1e-40, 2.0**30 * step], np.float32)
    x = np.concatenate([whole, halves, *near, far]).reshape(1, 1, 1, -1)
    check(cases.quantize_values(x, step, load_target("x86-64-avx2").cpu, "uint8"))


def test_interleaving_is_undone_by_narrowing() -> None:
    lanes = 8
    order = x86.interleaved_order(lanes)
    assert sorted(order) == list(range(4 * lanes))
    assert order[:8] == [0, 1, 2, 3, 16, 17, 18, 19]


def test_a_filter_meets_quads_wherever_an_output_sees_them() -> None:
    blocks = filter_blocks((3, 3), 1, 2)
    assert blocks == [(ky, 0, column) for ky in range(3) for column in range(2)]
    # Five columns reach into the next four.
    assert filter_blocks((1, 5), 2, 2) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    taps = np.multiply.outer(np.arange(1, 17), [1, 2, 3]).astype(np.int8)[None]
    packed = pack_filters(taps, (1, 3), 1, 2)
    assert packed.shape == (1, 2, 16, 4)
    assert packed[0, :, 5].tolist() == [[6, 12, 18, 0], [0, 6, 12, 18]]


def test_threads_of_a_convolution_have_scratch_memory_of_their_own(
    rng: np.random.Generator,
) -> None:
    cpu = load_target("x86-64-avx512-vnni").cpu
    case = cases.conv_case(rng, cpu, (1, 224, 224, 3), 32, "uint8")
    assert case.plan.is_parallel
    text = case.function.script()
    # What is allocated before the loop would be shared.
    assert 0 < text.index("T.parallel(") < text.index("alloc_buffer(")
    if HAS_AVX512_VNNI:
        with ComputeThread(2) as thread:
            thread.call(check, case)


def test_kernels_without_weights(rng: np.random.Generator, cpu: Cpu) -> None:
    check(cases.pool_case(rng, cpu, (2, 7, 7, 40), "int8"))
    check(cases.add_case(rng, cpu, (1, 5, 7, 24), ("uint8", "int8")))
    check(cases.quantize_case(rng, cpu, (1, 3, 9, 15), "uint8"))


def test_split_weights_fit_into_16_bits_and_add_up(rng: np.random.Generator) -> None:
    weights = cases.values(rng, (72, 12), "int8", extreme=True)
    workload = IntegerMatmulWorkload(rows=8, depth=72, columns=12, dtype="int8", requantize=None)
    plan = plan_integer_matmul(workload, load_target("rpi4").cpu)
    assert (plan.product, plan.sums) == ("mlal", 4)
    main, rest, places = split_weights(weights, plan)
    sums = np.abs(main[:64].astype(int)).reshape(2, 4, 8, 12).sum(axis=1)
    assert sums.max() <= 255
    # Least and greatest inputs of each sign at once: nothing leaves 16 bits.
    assert 128 * sums.max() < 2**15
    together = main.astype(int)
    for column in range(12):
        for entry in range(places[column], places[column + 1]):
            chunk, inside = divmod(int(places[entry]), plan.chunk * plan.row_tile)
            start = chunk * plan.chunk + inside
            eight = rest[8 * (entry - 13) : 8 * (entry - 13) + 8]
            together[start : start + 8, column] += eight
    np.testing.assert_array_equal(together[:72], weights)
