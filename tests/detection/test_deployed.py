"""A detector that was trained on digits, compiled: as good as in PyTorch, and of use."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.detect import detect
from tvm_mobilenet.detection.average_precision import average_precision
from tvm_mobilenet.detection.outputs import read_outputs
from tvm_mobilenet.detection.scenes import SceneSet, digit_scenes
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.models.ssd import Ssd
from tvm_mobilenet.models.weights import create_model
from tvm_mobilenet.training import detection as detection_module
from tvm_mobilenet.training.detection import detect_scenes
from tvm_mobilenet.training.result import TrainResult
from tvm_mobilenet.training.train import train
from tvm_mobilenet.verify.report import verify
from tvm_mobilenet.workflow import compile_model

MODEL = "ssd_mobilenet_v1_0.25_64"
pytestmark = [pytest.mark.torch, pytest.mark.slow]


@dataclass(frozen=True)
class Deployed:
    trained: TrainResult
    artifact: Artifact
    scenes: SceneSet
    picture: Path
    """The first held-out scene, twice as wide."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Deployed:
    folder = tmp_path_factory.mktemp("deployed")
    scenes = digit_scenes(64, train=128, held_out=24)
    patch = pytest.MonkeyPatch()
    patch.setattr(detection_module, "digit_scenes", lambda _resolution: scenes)
    trained = train(MODEL, "digits", out=folder / "digits.safetensors", epochs=6)
    patch.undo()
    artifact = compile_model(folder / "digits.safetensors", out=folder / "a")
    picture = Image.fromarray(scenes.held_out.pixels[0]).resize(
        (256, 128), Image.Resampling.NEAREST
    )
    picture.save(folder / "scene.png")
    return Deployed(trained, artifact, scenes, folder / "scene.png")


def test_training_learns_to_detect(deployed):
    history = deployed.trained.history
    assert deployed.trained.measure == "mAP"
    assert history[-1].train_loss < 0.8 * history[0].train_loss
    assert deployed.artifact.manifest.class_names == tuple("0123456789")


def test_the_deployed_model_is_as_good_as_in_pytorch(deployed):
    """Mean average precision within a point, COCO's and at an overlap of a half."""
    module = create_model(MODEL, weights=deployed.trained.weights).module
    assert isinstance(module, Ssd)
    held_out = deployed.scenes.held_out
    in_torch = average_precision(detect_scenes(module, held_out), held_out.true, 10)
    name = deployed.artifact.manifest.inputs[0].name
    with LocalExecutor(deployed.artifact, 2) as executor:
        found = [
            read_outputs(executor.run({name: held_out.inputs(np.asarray([index]))}))
            for index in range(len(held_out))
        ]
    compiled = average_precision(found, held_out.true, 10)
    assert in_torch.mean == pytest.approx(deployed.trained.held_out_accuracy)
    assert abs(compiled.mean - in_torch.mean) < 0.01
    assert abs(compiled.at_half - in_torch.at_half) < 0.01


def test_verify_compares_detections_with_onnxruntime_and_pytorch(deployed):
    report = verify(deployed.artifact.path, inputs=4, drift=True)
    report.check()
    assert {(c.reference, c.output) for c in report.comparisons} == {
        (engine, output)
        for engine in ("onnxruntime", "pytorch")
        for output in ("boxes", "scores", "classes", "count")
    }
    assert report.drift is not None
    compared = [layer for layer in report.drift.layers if layer.relative_l2 is not None]
    assert len(compared) == len(report.drift.layers) - 1  # the detections are compared as outputs
    assert report.drift.first_departed is None


def test_objects_are_in_pixels_of_the_picture_and_drawn_on_it(deployed, tmp_path):
    out = tmp_path / "found.png"
    result = detect(deployed.artifact.path, deployed.picture, out=out, threshold=0.05)
    assert (result.width, result.height) == (256, 128)
    assert result.objects
    assert [o.score for o in result.objects] == sorted(o.score for o in result.objects)[::-1]
    for each in result.objects:
        assert each.label == str(each.index)
        assert each.score >= 0.05
        assert 0 <= each.box[0] <= each.box[2] <= 256
        assert 0 <= each.box[1] <= each.box[3] <= 128
    best = result.objects[0]
    with Image.open(out) as drawn, Image.open(deployed.picture) as before:
        assert drawn.size == before.size
        changed = (np.asarray(drawn) != np.asarray(before.convert("RGB"))).any(axis=2)
    left, bottom = round(best.box[0]), round(best.box[3])
    assert changed[min(bottom, 127), min(left + 3, 255)], "the frame of the best one"
    assert not detect(deployed.artifact.path, deployed.picture, threshold=1).objects


def test_what_cannot_be_done_is_said_before_anything_is_written(deployed, tmp_path):
    with pytest.raises(SpecError, match=r"threshold 1\.5"):
        detect(deployed.artifact.path, deployed.picture, threshold=1.5)
    with pytest.raises(UsageError, match=r"drawn as one of \.png"):
        detect(deployed.artifact.path, deployed.picture, out=tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())


def on_the_command_line(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvm_mobilenet", "detect", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prints_json_and_draws_on_the_command_line(deployed, tmp_path):
    out = tmp_path / "found.jpg"
    ended = on_the_command_line(
        deployed.artifact.path, deployed.picture, "-o", out, "--threshold", 0.05
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    assert set(printed["objects"][0]) == {"label", "index", "score", "box"}
    assert printed["drawing"] == str(out)
    with Image.open(out) as drawn:
        assert drawn.size == (256, 128)


def test_a_picture_that_is_none_is_one_line(deployed, tmp_path):
    ended = on_the_command_line(
        deployed.artifact.path, tmp_path / "none.png", "-o", tmp_path / "x.png"
    )
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("error: image")
    assert not list(tmp_path.iterdir())
