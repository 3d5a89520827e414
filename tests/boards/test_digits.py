"""Digits read on an emulated board: as many right as PyTorch reads, picture by picture the same."""

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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tvm_mobilenet.training.train import train

    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    train("mobilenet_v1_0.25_32", "digits", out=path, epochs=3)
    return path


@pytest.mark.parametrize("target", ["rpi4", "rpi3"])
def test_as_many_digits_are_right_as_in_pytorch(target, weights, tmp_path):
    compile_model("mobilenet_v1_0.25_32", weights=weights, target=target, out=tmp_path / "out")
    with ensure_board(load_target(target)) as board:
        report = verify(
            tmp_path / "out", images="digits", weights=weights, device=connect(board.address)
        )
    report.check()
    accuracy = report.accuracy
    assert accuracy is not None
    assert accuracy.images > 300
    assert accuracy.correct["compiled"] == accuracy.correct["pytorch"]
    assert accuracy.disagreements == {"onnxruntime": (), "pytorch": ()}
