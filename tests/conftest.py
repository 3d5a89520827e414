"""What every test may rely on."""

from __future__ import annotations

import os

import pytest

# One computing thread for each test process: the processes themselves already fill the machine.
# Set before numpy, torch or TVM is imported anywhere.
for _name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected files from the results"
    )
