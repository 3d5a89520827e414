"""A MobileNet on emulated boards: it computes what ONNX Runtime does, and its instructions are
counted, the same number at every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.boards.emulator import start_board, stop_board
from tvm_mobilenet.boards.registry import Board
from tvm_mobilenet.count import InstructionCount, count_instructions
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.verify.report import verify

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("emulator")]

CLASSES = ["fma", "simd", "load_store", "branch", "other"]


@pytest.fixture(scope="module")
def mobilenet_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that learns digits, with random weights."""
    from tvm_mobilenet.export import export_onnx

    path = tmp_path_factory.mktemp("onnx") / "mobilenet.onnx"
    export_onnx("mobilenet_v1_0.25_32", num_classes=10, out=path)
    return path


@pytest.fixture(scope="module", params=["rpi4", "rpi3"])
def artifact(
    request: pytest.FixtureRequest,
    mobilenet_onnx: Path,
    tmp_path_factory: pytest.TempPathFactory,
    emulator: None,
) -> Artifact:
    from tvm_mobilenet.workflow import compile_model

    path = tmp_path_factory.mktemp("artifact") / request.param
    compile_model(mobilenet_onnx, target=request.param, out=path)
    return open_artifact(path, runnable=False)


@pytest.fixture(scope="module")
def board(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory):
    """A board for the artifact's target, not among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        started = start_board(load_target(artifact.manifest.target.name))
        try:
            yield started
        finally:
            stop_board(started)


@pytest.fixture(scope="module")
def count(artifact: Artifact, board: Board) -> InstructionCount:
    return count_instructions(artifact, board)


def test_computes_what_onnx_runtime_does(artifact, board):
    report = verify(artifact.path, inputs=3, drift=True, device=connect(board.address))
    assert report.is_within
    assert any(one.reference == "onnxruntime" for one in report.comparisons)
    assert report.drift is not None


def test_another_session_counts_the_same_to_the_digit(artifact, board, count):
    again = count_instructions(artifact, board, repeat=3)
    assert again.classes == count.classes
    assert [one.classes for one in again.layers] == [one.classes for one in count.layers]
    assert (count.repeat, again.repeat) == (2, 3)


def test_another_board_counts_the_same_to_the_digit(artifact, board, count):
    other = start_board(load_target(artifact.manifest.target.name))
    try:
        again = count_instructions(artifact, other)
    finally:
        stop_board(other)
    assert again.classes == count.classes


def test_the_total_is_that_of_the_classes(count):
    assert list(count.classes) == CLASSES
    assert count.instructions_per_inference == sum(count.classes.values())
    assert all(value > 0 for value in count.classes.values())


MOST_BESIDE_A_CALL = 2500
"""What the VM retires itself for one kernel call: registers, allocation, the call (seen: 2,000)."""


def test_layers_are_all_but_the_calls_themselves(artifact, count):
    layers = [one.instructions for one in count.layers]
    assert [one.kernel for one in count.layers] == [one.kernel for one in artifact.manifest.layers]
    assert 0 <= count.outside_layers <= MOST_BESIDE_A_CALL * len(layers)
    assert count.outside_layers == count.instructions_per_inference - sum(layers)


def test_multiply_adds_are_at_least_those_that_are_needed(count):
    for layer in count.layers:
        if layer.family in ("pointwise", "dense"):  # in others some products are of padding
            assert layer.classes["fma"] >= layer.floor, layer.kernel
    assert count.classes["fma"] < 1.5 * count.floor


def test_says_what_was_counted(artifact, count):
    content = count.to_dict()
    assert content["instructions_per_inference"] == count.instructions_per_inference
    assert content["threads"] == 1
    assert content["library_sha256"] == artifact.manifest.library.sha256
    assert content["emulated_cpu"] in ("cortex-a72", "cortex-a53")
    assert content["layers"][0]["instructions"] == count.layers[0].instructions


def test_one_inference_alone_is_not_trusted(artifact, board):
    with pytest.raises(SpecError, match=r"repeat 1: .* give 2 or more"):
        count_instructions(artifact, board, repeat=1)


def test_refuses_a_board_of_another_target(artifact, board):
    others = {"rpi4": "rpi3", "rpi3": "rpi4"}
    manifest = artifact.manifest
    other = manifest.target.model_copy(update={"name": others[manifest.target.name]})
    wrong = Artifact(artifact.path, manifest.model_copy(update={"target": other}))
    with pytest.raises(UsageError, match=f"stands for {manifest.target.name}; use a board for"):
        count_instructions(wrong, board)
