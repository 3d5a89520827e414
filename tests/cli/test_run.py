from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvm_mobilenet import run as run_module

MODEL = "mobilenet_v1_0.25_32"


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(run_module, "_ROUNDS", 2)


def test_a_users_network_from_file_to_table(cli, tiny_onnx: Path, tmp_path: Path):
    out = tmp_path / "tiny"
    result = cli("run", tiny_onnx, "-o", out)
    assert result.code == 0, result.err
    assert "model    tiny for host" in result.out
    assert "latency, 1 thread " in result.out
    assert "x the time of ONNX Runtime" in result.out
    assert f"saved in {out}/run.json" in result.out
    saved = json.loads((out / "run.json").read_text())
    assert saved["verification"]["within"] is True
    assert saved["timing"][0]["threads"] == 1


def test_train_to_table_and_again_without_training(cli, labelled_pictures: Path, tmp_path: Path):
    words = ("run", MODEL, "--data", labelled_pictures, "--epochs", 1, "-o", tmp_path / "out")
    result = cli(*words)
    assert result.code == 0, result.err
    assert "trained for 1 epochs in" in result.out
    accuracy = next(line for line in result.out.splitlines() if line.startswith("accuracy"))
    shares = accuracy.split()[1:6:2]
    assert len(shares) == 3
    assert len(set(shares)) == 1, "compiled, onnxruntime and pytorch must agree"
    assert "4 held-out pictures" in accuracy

    again = cli(*words, "--json")
    assert again.code == 0, again.err
    assert again.json["training"]["reused"] is True
    assert again.json == json.loads((tmp_path / "out/run.json").read_text())


def test_a_board_is_compiled_for_and_not_timed(cli, tiny_onnx: Path, tmp_path: Path):
    result = cli("run", tiny_onnx, "--target", "rpi4", "-o", tmp_path / "pi")
    assert result.code == 0, result.err
    assert "neither verified nor timed: the library is for aarch64" in result.err
    assert "latency" not in result.out


def test_random_weights_are_said_to_be_random(cli, tmp_path: Path):
    result = cli("run", MODEL, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "weights  random (seed 0)" in result.out
    assert "the weights are random: outputs agree, but mean nothing" in result.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("mobilenet_v1_0.25_23O",), "did you mean"),
        (("none.onnx",), "none.onnx"),
        (("--data", "no-such-folder"), "there is no such folder"),
        (("--target", "rp4"), "did you mean 'rpi4'"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    cli, tmp_path: Path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    assert says in cli("run", *words).fails(2)
    assert list(tmp_path.iterdir()) == []
