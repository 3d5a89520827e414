"""What the tests of kernels share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.schedule.emulated import build_runner


@pytest.fixture(scope="session")
def runner_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program that runs a kernel for AArch64, compiled."""
    return build_runner(tmp_path_factory.mktemp("runner"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers, the same in every run."""
    return np.random.default_rng(4)
