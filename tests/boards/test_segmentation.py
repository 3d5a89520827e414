"""A segmenter on an emulated board: the same classes, pixel by pixel, as PyTorch finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_mobilenet.boards.emulator import ensure_board
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.verify.report import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = [
    pytest.mark.arm,
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.usefixtures("emulator", "own_boards"),
]


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large_65", "deeplabv3_mobilenet_v2_65"])
def test_a_segmenter_agrees_with_its_references(name: str, tmp_path: Path) -> None:
    compile_model(name, target="rpi4", out=tmp_path / "out")
    with ensure_board(load_target("rpi4")) as board:
        report = verify(tmp_path / "out", inputs=2, device=connect(board.address))
    report.check()
    assert [found.top1_agreement for found in report.comparisons] == [1, 1]
