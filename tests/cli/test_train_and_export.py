from __future__ import annotations

from pathlib import Path

import pytest

MODEL = "mobilenet_v1_0.25_32"


def test_train_then_export(cli, labelled_pictures: Path, tmp_path: Path):
    weights, onnx = tmp_path / "w.safetensors", tmp_path / "m.onnx"
    trained = cli("train", MODEL, "--data", labelled_pictures, "--epochs", 1, "-o", weights)
    assert trained.code == 0, trained.err
    assert f"weights   {weights}\n" in trained.out
    assert "of 4 held-out pictures, after epoch 1 of 1" in trained.out
    assert "training mobilenet_v1_0.25_32: epoch 1/1" in trained.err

    exported = cli("export", MODEL, "--weights", weights, "-o", onnx)
    assert exported.code == 0, exported.err
    assert "weights  w.safetensors\n" in exported.out
    assert "output   logits: float32 1x2\n" in exported.out
    assert onnx.is_file()


def test_export_says_that_weights_are_random(cli, tmp_path: Path):
    result = cli("export", MODEL, "-o", tmp_path / "m.onnx")
    assert "weights  random (seed 0)" in result.out


def test_quiet_export_says_nothing_on_stderr(cli, tmp_path: Path):
    assert cli("-q", "export", MODEL, "-o", tmp_path / "m.onnx").err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "mobilenet_v1_0.5_16O"), "did you mean 'mobilenet_v1_0.5_160'"),
        (("export", "mobilenet_v1_0_32"), "alpha is 0"),
        (("export", "mobilenet_v1_1.0_0"), "resolution is 0"),
        (("export", MODEL, "--weights", "none.safetensors"), "there is no such file"),
        (("train", MODEL, "--data", "no-such-folder"), "there is no such folder"),
        (("train", MODEL, "--data", "digits", "--epochs", "0"), "epochs is 0"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(cli, tmp_path: Path, words, says):
    output = tmp_path / ("m.onnx" if words[0] == "export" else "w.safetensors")
    assert says in cli(*words, "-o", output).fails(2)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_training_tells_how_to_go_on(cli, labelled_pictures, tmp_path, monkeypatch):
    from tvm_mobilenet.training.loop import Training

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_epoch", interrupted)
    weights = tmp_path / "w.safetensors"
    result = cli("train", MODEL, "--data", labelled_pictures, "-o", weights)
    assert result.code == 130
    assert "goes on from the last whole epoch" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "w.safetensors.checkpoint"}
