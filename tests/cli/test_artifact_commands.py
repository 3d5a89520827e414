"""verify, measure and classify: what is done with a compiled model."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.verify import parity


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "first.png", tmp_path / "second.jpg"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def impossible_threshold(monkeypatch):
    """Demand more than float32 can give."""
    strict = dataclasses.replace(parity.THRESHOLDS["float32"], relative_l2=1e-12)
    monkeypatch.setitem(parity.THRESHOLDS, "float32", strict)


def test_verify_compares_a_model_of_ours_with_both(cli, model_dir: Path):
    result = cli("verify", model_dir, "--inputs", 3)
    assert result.code == 0, result.err
    assert "on 3 inputs (seed 0)" in result.out
    assert "weights are random (seed 0)" in result.out
    rows = [line.split() for line in result.out.splitlines() if line.endswith("within")]
    assert [row[0] for row in rows] == ["onnxruntime", "pytorch"]


def test_verify_says_why_pytorch_is_left_out(cli, artifact_dir: Path):
    result = cli("verify", artifact_dir, "--inputs", 2, "--json")
    assert result.code == 0, result.err
    assert [found["reference"] for found in result.json["comparisons"]] == ["onnxruntime"]
    assert "pytorch" in result.json["not_compared"]
    assert "not compared with pytorch: " in cli("verify", artifact_dir, "--inputs", 1).err


def test_verify_drift_lists_every_layer(cli, model_dir: Path):
    result = cli("verify", model_dir, "--inputs", 1, "--drift")
    assert "first layer beyond a relative L2 of 1e-04: none" in result.out
    layers = cli("verify", model_dir, "--inputs", 1, "--drift", "--json").json["drift"]["layers"]
    for layer in layers:
        assert layer["kernel"] in result.out


def test_verify_with_labelled_pictures_shows_accuracy(cli, model_dir: Path, pictures, tmp_path):
    for name, picture in zip(("0", "1"), pictures, strict=True):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        shutil.copy(picture, tmp_path / "labelled" / name)
    result = cli("verify", model_dir, "--images", tmp_path / "labelled")
    assert result.code == 0, result.err
    assert "of 2 pictures" in result.out


def test_outputs_that_disagree_end_with_3(cli, model_dir: Path, impossible_threshold):
    result = cli("verify", model_dir, "--inputs", 1)
    assert result.code == 3
    assert "EXCEEDS" in result.out
    assert "error: artifact" in result.err
    assert "run verify with --drift" in result.err
    report = cli("verify", model_dir, "--inputs", 1, "--drift", "--json")
    assert report.code == 3
    assert report.json["within"] is False
    assert report.json["drift"]["first_departed"] is not None


def test_measure_shows_and_tells(cli, artifact_dir: Path):
    result = cli("measure", artifact_dir, "--threads", 1, "--repeat", 20, "--warmup", 2)
    assert result.code == 0, result.err
    header, values = result.out.splitlines()[1:3]
    assert header.split()[:2] == ["threads", "median"]
    assert values.split()[0] == "1"
    assert "20 inferences after 2 to warm up" in result.out

    found = cli(
        "-q", "measure", artifact_dir, "--threads", 1, "--repeat", 20, "--profile", "--json"
    )
    assert found.err == ""
    assert found.json["threads"] == 1
    assert len(found.json["timing"]["values_ms"]) == 20
    assert found.json["timing"]["min_ms"] <= found.json["timing"]["median_ms"]
    assert found.json["profile"]["layers"]


def test_measure_profile_prints_every_layer(cli, artifact_dir: Path):
    words = ("--threads", 1, "--repeat", 5, "--profile")
    result = cli("measure", artifact_dir, *words)
    layers = cli("measure", artifact_dir, *words, "--json").json["profile"]["layers"]
    assert layers
    for layer in layers:
        assert layer["kernel"] in result.out
    assert "whole: " in result.out


def test_classify_names_five_classes_a_picture(cli, model_dir: Path, pictures):
    result = cli("classify", model_dir, *pictures)
    assert result.code == 0, result.err
    assert "the weights are random" in result.err
    assert len(result.out.splitlines()) == 1 + 5 * len(pictures)
    answers = cli("classify", model_dir, *pictures, "--json").json
    assert [Path(answer["image"]).name for answer in answers] == ["first.png", "second.jpg"]
    for answer in answers:
        shares = [guess["probability"] for guess in answer["guesses"]]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("command", ["verify", "measure", "classify"])
def test_a_folder_that_is_no_artifact(cli, tmp_path: Path, pictures, command):
    words = [pictures[0]] if command == "classify" else []
    assert "no manifest.json" in cli(command, tmp_path, *words).fails(1)
    assert "no such folder" in cli(command, tmp_path / "none", *words).fails(1)


@pytest.mark.parametrize("command", ["verify", "measure"])
def test_a_truncated_library_is_refused(cli, artifact_dir: Path, tmp_path: Path, command):
    copy = tmp_path / "copy"
    shutil.copytree(artifact_dir, copy)
    library = copy / "model.so"
    library.write_bytes(library.read_bytes()[:-1000])
    assert "model.so is truncated" in cli(command, copy).fails(1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("verify", "--inputs", "0"), "at least one input"),
        (("verify", "--inputs", "2", "--images", "x"), "--inputs and --images were both given"),
        (("verify", "--images", "no-such-folder"), "there is no such folder"),
        (("measure", "--repeat", "0"), "repeat 0"),
        (("measure", "--threads", "0"), "0"),
    ],
)
def test_a_wrong_number_is_one_line(cli, model_dir: Path, words, says):
    command, *options = words
    assert says in cli(command, model_dir, *options).fails(2)


def test_a_file_that_is_no_picture(cli, model_dir: Path):
    assert "not a picture" in cli("classify", model_dir, model_dir / "manifest.json").fails(2)


def test_a_model_without_classes_cannot_classify(cli, artifact_dir: Path, pictures):
    assert cli("classify", artifact_dir, pictures[0]).fails(2)
