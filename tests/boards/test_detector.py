"""A detector on an emulated board: the suppression runs on AArch64 too."""

from __future__ import annotations

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


def test_detections_are_those_of_onnxruntime_and_pytorch(tmp_path):
    model = "ssd_mobilenet_v1_0.25_64"
    compile_model(model, num_classes=7, target="rpi4", out=tmp_path / "out")
    with ensure_board(load_target("rpi4")) as board:
        report = verify(tmp_path / "out", inputs=3, device=connect(board.address))
    report.check()
    assert {found.reference for found in report.comparisons} == {"onnxruntime", "pytorch"}
