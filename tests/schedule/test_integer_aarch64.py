"""Integer kernels for AArch64 as LLVM compiles them, run under the emulator, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedule import integer_cases as cases
from tests.schedule.emulated import needs_emulator, run_emulated
from tvm_mobilenet.targets import TargetSpec, load_target

pytestmark = needs_emulator

Check = Callable[..., None]


@pytest.fixture(params=["rpi4", "rpi5", pytest.param("i8mm", marks=pytest.mark.slow)])
def spec(request: pytest.FixtureRequest) -> TargetSpec:
    return cases.with_i8mm() if request.param == "i8mm" else load_target(request.param)


@pytest.fixture
def check(spec: TargetSpec, runner_object: Path, tmp_path: Path) -> Check:
    def run(case: cases.Case, threads: int = 1) -> None:
        found = run_emulated(
            case.function,
            case.arguments,
            np.zeros_like(case.expected),
            spec,
            runner_object,
            tmp_path,
            threads,
        )
        np.testing.assert_array_equal(found, case.expected)

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.mark.parametrize(
    ("size", "dtype", "extreme"),
    # Tails of rows, columns and depth; one row; all weights -128 or 127, which have to be split.
    [
        ((49, 64, 40), "int8", False),
        ((13, 24, 37), "uint8", True),
        ((1, 136, 28), "int8", True),
        ((30, 112, 64), "uint8", False),
    ],
)
def test_matmul(
    spec: TargetSpec,
    check: Check,
    rng: np.random.Generator,
    size: tuple[int, int, int],
    dtype: Any,
    extreme: bool,
) -> None:
    check(cases.matmul_case(rng, spec.cpu, size, dtype, extreme=extreme))


def test_matmul_of_weights_that_are_split_here_and_there(
    spec: TargetSpec, check: Check, rng: np.random.Generator
) -> None:
    case = cases.matmul_case(rng, spec.cpu, (21, 256, 24), "int8", narrow=True)
    if case.plan.product == "mlal":
        assert case.plan.sums == 4
    check(case)


def test_matmul_cut_among_threads(spec: TargetSpec, check: Check, rng: np.random.Generator) -> None:
    case = cases.matmul_case(rng, spec.cpu, (196, 320, 264), "uint8")
    assert case.plan.is_parallel
    check(case, threads=3)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 14, 14, 32), "int8", {}),
        ((2, 9, 13, 24), "uint8", {"stride": 2, "extreme": True}),
        ((1, 11, 11, 40), "int8", {"kernel": 5, "stride": 2, "extreme": True}),
    ],
)
def test_depthwise(
    spec: TargetSpec,
    check: Check,
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    dtype: Any,
    options: dict[str, Any],
) -> None:
    check(cases.depthwise_case(rng, spec.cpu, shape, dtype, **options))


def test_stem(spec: TargetSpec, check: Check, rng: np.random.Generator) -> None:
    check(cases.conv_case(rng, spec.cpu, (1, 20, 32, 3), 24, "uint8"))


def test_kernels_without_weights(spec: TargetSpec, check: Check, rng: np.random.Generator) -> None:
    check(cases.pool_case(rng, spec.cpu, (2, 7, 7, 40), "int8"))
    check(cases.add_case(rng, spec.cpu, (1, 5, 7, 24), ("uint8", "int8")))
    check(cases.quantize_case(rng, spec.cpu, (1, 3, 9, 15), "int8"))
