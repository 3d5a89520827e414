"""A compiled model against its references: seeded inputs, pictures with labels, layer by layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.errors import (
    ArtifactError,
    ImageError,
    InputFileError,
    ManifestMismatchError,
    ParityError,
    SpecError,
    UsageError,
)
from tvm_mobilenet.manifest import FileRecord
from tvm_mobilenet.verify import verify
from tvm_mobilenet.workflow import compile_model

COLOURS = {"red": (220, 30, 40), "green": (60, 200, 20), "blue": (10, 70, 180)}
MODEL = "mobilenet_v1_0.25_32"


@pytest.fixture(scope="module")
def random_dir(tmp_path_factory) -> Path:
    """A MobileNet with random weights."""
    path = tmp_path_factory.mktemp("random") / "out"
    compile_model(MODEL, out=path, num_classes=10, seed=3)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A MobileNet with the weights of a file: the artifact, and the file elsewhere."""
    from tvm_mobilenet.models.preprocess import default_preprocessing
    from tvm_mobilenet.models.weight_file import WeightsDescription
    from tvm_mobilenet.models.weights import batch_norm_eps, create_model, save_weights

    folder = tmp_path_factory.mktemp("trained")
    module = create_model(MODEL, num_classes=4, seed=8).module
    description = WeightsDescription(
        model=MODEL,
        num_classes=4,
        class_names=("a", "b", "c", "d"),
        preprocessing=default_preprocessing(32),
        batch_norm_eps=batch_norm_eps(module),
    )
    (folder / "weights").mkdir()
    weights = save_weights(module, folder / "weights" / "own.safetensors", description)
    compile_model(MODEL, out=folder / "deep" / "out", weights=weights)
    return folder / "deep" / "out", weights


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of each colour, in a folder for each."""
    rng = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.clip(np.asarray(colour) + rng.integers(-20, 21, (40, 48, 3)), 0, 255)
            path = tmp_path / "pictures" / name / f"{index}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def wrong_model(colour_dir: Path, tmp_path: Path) -> Callable[[str, float], Path]:
    """Make an artifact whose library and ONNX file differ in one weight, hashes in order."""

    def make(weight: str, difference: float) -> Path:
        folder = Path(shutil.copytree(colour_dir, tmp_path / "wrong"))
        path = folder / "model.onnx"
        model = onnx.load(path)
        (tensor,) = (item for item in model.graph.initializer if item.name == weight)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += difference
        tensor.CopyFrom(numpy_helper.from_array(values, weight))
        onnx.save(model, path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["onnx"] = FileRecord.of(path).model_dump()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


class TestSeededInputs:
    def test_a_users_model_is_compared_with_onnx_runtime(self, colour_dir: Path):
        report = verify(colour_dir, inputs=5, threads=1)
        (statistics,) = report.comparisons
        assert statistics.reference == "onnxruntime"
        assert statistics.inputs == 5
        assert 0 < statistics.relative_l2 < 1e-5
        assert report.is_within
        report.check()
        assert report.not_compared == {"pytorch": "colour is not a model of tvm-mobilenet's"}
        assert report.source == "seed 0"
        assert not report.is_random

    def test_random_weights_are_drawn_again_in_pytorch(self, random_dir: Path):
        report = verify(random_dir, inputs=4, threads=1, seed=9)
        assert [found.reference for found in report.comparisons] == ["onnxruntime", "pytorch"]
        assert report.is_within
        assert report.is_random
        assert report.weights == "random (seed 3)"
        assert report.source == "seed 9"
        assert all(found.top5_agreement == 1 for found in report.comparisons)

    def test_a_weight_file_is_found_where_it_is_named(self, trained: tuple[Path, Path]):
        folder, weights = trained
        report = verify(folder, inputs=2, weights=weights, threads=1)
        assert [found.reference for found in report.comparisons] == ["onnxruntime", "pytorch"]
        assert report.is_within

    def test_a_weight_file_is_found_beside_the_artifact(self, trained, tmp_path: Path):
        folder, weights = trained
        shutil.copytree(folder, tmp_path / "out")
        shutil.copy(weights, tmp_path / weights.name)
        assert verify(tmp_path / "out", inputs=1, threads=1).not_compared == {}

    def test_a_weight_file_that_is_not_at_hand_is_said(self, trained, tmp_path: Path):
        folder, weights = trained
        shutil.copytree(folder, tmp_path / "out")
        (tmp_path / weights.name).write_text("another file of that name")
        report = verify(tmp_path / "out", inputs=1, threads=1)
        assert [found.reference for found in report.comparisons] == ["onnxruntime"]
        assert "give it with --weights" in report.not_compared["pytorch"]

    def test_another_weight_file_is_refused(self, trained, random_dir: Path, tmp_path: Path):
        folder, weights = trained
        other = tmp_path / "other.safetensors"
        other.write_bytes(weights.read_bytes() + b" ")
        with pytest.raises(UsageError, match="not the file that the artifact was made from"):
            verify(folder, weights=other, threads=1)
        with pytest.raises(UsageError, match="was made with random"):
            verify(random_dir, weights=weights, threads=1)

    def test_a_wrong_weight_is_noticed(self, wrong_model):
        folder = wrong_model("w3", 0.5)
        report = verify(folder, inputs=3, threads=1)
        assert not report.is_within
        with pytest.raises(ParityError, match=r"output 'y' differs .*run verify with --drift") as e:
            report.check()
        assert e.value.exit_code == 3
        assert e.value.statistics["comparisons"][0]["within"] is False
        json.dumps(e.value.statistics, allow_nan=False)

    def test_json_is_complete(self, random_dir: Path):
        report = verify(random_dir, inputs=1, drift=True, threads=1)
        content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert content["within"] is True
        assert content["is_random"] is True
        assert content["comparisons"][0]["threshold"]["reason"]
        assert len(content["drift"]["layers"]) == len(open_artifact(random_dir).manifest.layers)

    def test_no_inputs_at_all(self, colour_dir: Path):
        with pytest.raises(SpecError, match="inputs 0"):
            verify(colour_dir, inputs=0)

    def test_an_artifact_without_its_onnx_file(self, colour_onnx: Path, tmp_path: Path):
        compile_model(colour_onnx, out=tmp_path / "out", keep_onnx=False)
        with pytest.raises(ArtifactError, match="compile the model again without --no-onnx"):
            verify(tmp_path / "out")

    def test_an_altered_onnx_file(self, colour_dir: Path, tmp_path: Path):
        copy = Path(shutil.copytree(colour_dir, tmp_path / "copy"))
        (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"\0")
        with pytest.raises(ManifestMismatchError, match=r"model\.onnx is altered"):
            verify(copy)


class TestPictures:
    def test_labels_give_accuracy_side_by_side(self, colour_dir: Path, pictures: Path):
        report = verify(colour_dir, images=pictures, threads=1)
        accuracy = report.accuracy
        assert accuracy is not None
        assert accuracy.images == report.inputs == 9
        assert accuracy.correct == {"compiled": 9, "onnxruntime": 9}
        assert accuracy.disagreements == {"onnxruntime": ()}
        assert accuracy.accuracy("compiled") == 1
        assert report.is_within

    def test_a_wrong_label_is_a_wrong_answer_of_both(self, colour_dir: Path, pictures: Path):
        shutil.copy(pictures / "red" / "0.png", pictures / "blue" / "really_red.png")
        accuracy = verify(colour_dir, images=pictures, threads=1).accuracy
        assert accuracy is not None
        assert accuracy.correct == {"compiled": 9, "onnxruntime": 9}
        assert accuracy.images == 10

    def test_pictures_on_which_they_differ_are_named(self, wrong_model, pictures: Path):
        # The classifier of the reference now takes what is red for blue.
        folder = wrong_model("b4", -100.0)
        report = verify(folder, images=pictures, threads=1)
        assert report.accuracy is not None
        assert report.accuracy.correct == {"compiled": 9, "onnxruntime": 6}
        named = report.accuracy.disagreements["onnxruntime"]
        assert named == ("red/0.png", "red/1.png", "red/2.png")
        assert report.comparisons[0].top1_agreement == pytest.approx(6 / 9)

    def test_pictures_without_labels_are_compared_alone(self, colour_dir: Path, pictures: Path):
        report = verify(colour_dir, images=pictures / "red", threads=1)
        assert report.accuracy is None
        assert report.inputs == 3
        assert report.is_within

    def test_the_last_batch_is_not_counted_twice(self, colour_onnx: Path, pictures, tmp_path: Path):
        model = onnx.load(colour_onnx)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 4
        onnx.save(model, tmp_path / "four.onnx")
        compile_model(tmp_path / "four.onnx", out=tmp_path / "out")
        report = verify(tmp_path / "out", images=pictures, threads=1)
        assert report.accuracy is not None
        assert report.accuracy.correct == {"compiled": 9, "onnxruntime": 9}
        assert report.accuracy.images == 9

    def test_digits_are_the_held_out_scans(self, random_dir: Path):
        report = verify(random_dir, images="digits", threads=1)
        assert report.source == "digits (held out)"
        assert report.accuracy is not None
        assert report.accuracy.images == report.inputs == 359
        assert set(report.accuracy.correct) == {"compiled", "onnxruntime", "pytorch"}
        assert report.accuracy.disagreements == {"onnxruntime": (), "pytorch": ()}

    def test_a_folder_that_is_none_of_the_classes(self, colour_dir: Path, pictures: Path):
        (pictures / "red").rename(pictures / "purple")
        with pytest.raises(InputFileError, match=r"'purple' is no class of colour \(red, green"):
            verify(colour_dir, images=pictures)

    def test_more_folders_than_classes(self, random_dir: Path, tmp_path: Path):
        for index in range(11):
            (tmp_path / "many" / str(index)).mkdir(parents=True)
        with pytest.raises(InputFileError, match=r"11 sub-folders, but .* tells 10 classes apart"):
            verify(random_dir, images=tmp_path / "many")

    def test_folders_without_pictures(self, colour_dir: Path, tmp_path: Path):
        with pytest.raises(InputFileError, match="there is no such folder"):
            verify(colour_dir, images=tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputFileError, match="no picture in it"):
            verify(colour_dir, images=tmp_path / "empty")

    def test_a_file_that_is_no_picture(self, colour_dir: Path, pictures: Path):
        (pictures / "red" / "notes.txt").write_text("no picture")
        with pytest.raises(ImageError, match=r"notes\.txt: not a picture"):
            verify(colour_dir, images=pictures, threads=1)


class TestDrift:
    def test_every_layer_agrees(self, random_dir: Path):
        drift = verify(random_dir, inputs=1, drift=True, threads=1).drift
        assert drift is not None
        assert drift.first_departed is None
        compared = [layer for layer in drift.layers if layer.relative_l2 is not None]
        assert len(compared) == len(drift.layers)
        assert all(layer.relative_l2 < 1e-5 for layer in compared if layer.relative_l2 is not None)

    @pytest.mark.parametrize(
        ("weight", "tensors"), [("w1", {"b", "d", "f"}), ("w3", {"f"}), ("w4", {"y"})]
    )
    def test_the_first_wrong_layer_is_named(self, wrong_model, weight: str, tensors: set[str]):
        # A kernel may take in the layer after it: then the first tensor there is the pair's.
        report = verify(wrong_model(weight, 0.5), inputs=1, drift=True, threads=1)
        assert report.drift is not None
        first = report.drift.first_departed
        assert first is not None
        assert first.tensor in tensors
        before = report.drift.layers[: first.index]
        assert all(not layer.exceeds for layer in before)
        with pytest.raises(ParityError, match=f"the first layer that departs is {first.index}, "):
            report.check()
