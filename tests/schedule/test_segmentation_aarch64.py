"""The kernels of segmentation as LLVM compiles them for AArch64, run under the emulator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.schedule.emulated import needs_emulator, run_emulated
from tests.schedule.segmentation_cases import (
    JOINED,
    RESIZES,
    TAPS,
    Case,
    joined_case,
    resize_case,
    taps_case,
)
from tests.schedule.test_aarch64 import assert_close
from tvm_mobilenet.targets import load_target

pytestmark = needs_emulator

RPI4 = load_target("rpi4")


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "resize by 8 to NCHW": lambda rng: resize_case(RESIZES[0], RPI4.cpu, rng),
    "resize by no whole factor to NCHW": lambda rng: resize_case(RESIZES[2], RPI4.cpu, rng),
    "resize to NHWC": lambda rng: resize_case(RESIZES[4], RPI4.cpu, rng),
    "rate 2": lambda rng: taps_case(TAPS[0], RPI4.cpu, rng),
    "rate 3 of 5x5 and a residual": lambda rng: taps_case(TAPS[2], RPI4.cpu, rng),
    "branches side by side": lambda rng: joined_case(*JOINED[1], RPI4.cpu, rng),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_for_rpi4(runner_object: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name](np.random.default_rng(9))
    output = np.full(case.expected.shape, np.nan, "float32")
    found = run_emulated(case.function, case.arguments, output, RPI4, runner_object, tmp_path)
    assert_close(found, case.expected)
