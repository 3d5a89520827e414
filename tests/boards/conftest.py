"""What the tests of emulated boards share: a place of their own for boards, and the skip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boards.agents import (
    agent,
    native,
    native_agent,
    program,
    programs,
    stock_tracker,
)
from tvm_mobilenet.boards.sysroot import missing_packages

__all__ = [
    "agent",
    "native",
    "native_agent",
    "program",
    "programs",
    "stock_tracker",
]


@pytest.fixture(scope="session")
def emulator() -> None:
    """Skip where AArch64 programs cannot be run."""
    missing = missing_packages()
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}; see `make emulator`")


@pytest.fixture
def own_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep boards in a folder of the test's own, and see that none is left."""
    from tvm_mobilenet.boards.emulator import stop_board
    from tvm_mobilenet.boards.registry import list_boards

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    yield tmp_path / "run/tvm-mobilenet/boards"
    left = list_boards(starting=True)
    for board in left:
        stop_board(board)
    assert not left, "the test left boards behind"
