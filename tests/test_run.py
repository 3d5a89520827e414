"""The main job: from nothing to a verified library with its record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tvm_mobilenet import run as run_module
from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import ParityError, UnknownModelError, UsageError
from tvm_mobilenet.run import run
from tvm_mobilenet.verify.report import verify


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short turns an engine instead of nine: the figures are not looked at here."""
    monkeypatch.setattr(run_module, "_ROUNDS", 2)
    monkeypatch.setattr(run_module, "_BURST_S", 0.005)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits that trained for two epochs."""
    out = tmp_path_factory.mktemp("run") / "digits"
    run(out=out, epochs=2, threads=[1])
    return out


def test_all_implementations_agree_on_every_held_out_scan(digits: Path) -> None:
    record = json.loads((digits / "run.json").read_text())
    accuracy = record["verification"]["accuracy"]
    assert accuracy["images"] == 359
    assert set(accuracy["correct"]) == {"compiled", "onnxruntime", "pytorch"}
    assert len(set(accuracy["correct"].values())) == 1
    assert accuracy["disagreements"] == {"onnxruntime": [], "pytorch": []}
    assert record["training"]["epochs"] == 2
    assert record["is_random"] is False
    assert record["timing"][0]["threads"] == 1
    assert record["timing"][0]["ratio"] > 0


def test_artifact_carries_classes_and_preprocessing(digits: Path) -> None:
    manifest = open_artifact(digits).manifest
    assert manifest.class_names == tuple("0123456789")
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.crop == 32


def test_second_run_uses_the_weights_of_the_first(digits: Path) -> None:
    library = (digits / "model.so").read_bytes()
    report = run(out=digits, epochs=2, threads=[1])
    assert report.training is not None
    assert report.training["reused"] is True
    assert (digits / "model.so").read_bytes() == library


def test_weight_file_can_be_the_model(digits: Path, tmp_path: Path) -> None:
    weights = digits.parent / "digits.safetensors"
    report = run(weights, out=tmp_path / "a", threads=[1])
    assert report.model == "mobilenet_v1_0.25_32"
    assert report.training is None
    assert report.verification is not None
    assert report.verification.is_within


def test_random_weights_say_so(tmp_path: Path) -> None:
    report = run("mobilenet_v1_0.25_32", out=tmp_path / "a", threads=[1])
    assert report.is_random
    assert report.weights == "random (seed 0)"
    assert report.verification is not None
    assert report.verification.accuracy is None


def test_library_for_another_machine_is_compiled_and_not_run(tmp_path: Path) -> None:
    report = run("mobilenet_v1_0.25_32", target="generic-armv7", out=tmp_path / "a")
    assert report.verification is None
    assert report.timing == ()
    assert report.not_run is not None
    assert "arm" in report.not_run


def test_disagreement_is_an_error_and_leaves_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> object:
        report = verify(*args, **kwargs)  # type: ignore[arg-type]
        first = report.comparisons[0]
        worse = dataclasses.replace(first, relative_l2=0.5)
        return dataclasses.replace(report, comparisons=(worse,))

    monkeypatch.setattr(run_module, "verify", broken)
    with pytest.raises(ParityError):
        run("mobilenet_v1_0.25_32", out=tmp_path / "a", threads=[1])
    assert json.loads((tmp_path / "a" / "run.json").read_text())["verification"]["within"] is False


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="mobilenet_v1"):
        run("mobilenet_v9_1.0_224", out=tmp_path / "a")
    with pytest.raises(UsageError, match="cannot be trained"):
        run("model.onnx", data="digits", out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
