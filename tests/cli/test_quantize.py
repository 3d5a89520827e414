from __future__ import annotations

from pathlib import Path


def test_the_report_names_every_layer(cli, colour_onnx: Path, tmp_path: Path):
    out = tmp_path / "int8.onnx"
    words = ("quantize", colour_onnx, "--calibration", "random", "--samples", 4, "-o", out)
    result = cli(*words)
    assert result.code == 0, result.err
    for name in ("stem", "depthwise", "pointwise", "classifier"):
        assert f"\n{name} " in result.out
    assert f"onnx       {out}" in result.out
    assert "costliest  " in result.out
    assert "in float   none" in result.out
    as_json = cli(*words, "--keep-float", "depthwise", "--no-sensitivity", "--json").json
    assert as_json["kept_float"] == ["depthwise"]
    assert [layer["is_float"] for layer in as_json["layers"]] == [False, True, False, False]


def test_a_wrong_request_is_one_line_and_leaves_nothing(cli, colour_onnx: Path, tmp_path: Path):
    out = tmp_path / "int8.onnx"
    words = ("quantize", colour_onnx, "-o", out, "--calibration")
    assert "no such folder" in cli(*words, tmp_path / "none").fails(2)
    assert "known ones are minmax" in cli(*words, "random", "--method", "best").fails(2)
    assert "no such convolution" in cli(*words, "random", "--keep-float", "x").fails(2)
    assert list(tmp_path.iterdir()) == []


def test_training_begins_with_weights_only_for_int8_and_fewer_channels(cli, tmp_path: Path):
    words = ("train", "mobilenet_v1_0.25_32", "--data", "digits", "-o", tmp_path / "o.safetensors")
    message = cli(*words, "--weights", tmp_path / "w.safetensors").fails(2)
    assert "only --qat and --prune begin with weights" in message
