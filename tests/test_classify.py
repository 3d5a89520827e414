"""A picture to its class, with what the artifact knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.classify import classify
from tvm_mobilenet.errors import ArtifactError, ImageError, SpecError

COLOURS = {"red": (220, 30, 40), "green": (60, 200, 20), "blue": (10, 70, 180)}


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    paths = {}
    for name, colour in COLOURS.items():
        pixels = np.clip(np.asarray(colour) + rng.integers(-20, 21, (50, 70, 3)), 0, 255)
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(paths[name])
    return paths


def test_the_colour_of_a_picture_is_told(colour_dir: Path, pictures: dict[str, Path]):
    predictions = classify(colour_dir, list(pictures.values()), threads=1)
    assert [prediction.guesses[0].label for prediction in predictions] == list(COLOURS)
    assert [prediction.image for prediction in predictions] == [str(p) for p in pictures.values()]
    for prediction in predictions:
        shares = [guess.probability for guess in prediction.guesses]
        assert len(shares) == 3  # there are no five
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)


def test_top_limits_the_guesses(colour_dir: Path, pictures: dict[str, Path]):
    (prediction,) = classify(colour_dir, [pictures["blue"]], top=1, threads=1)
    assert [guess.label for guess in prediction.guesses] == ["blue"]
    assert prediction.to_dict()["guesses"][0]["index"] == 2
    with pytest.raises(SpecError, match="top 0"):
        classify(colour_dir, [pictures["blue"]], top=0)


def test_without_names_classes_are_numbered(colour_onnx: Path, pictures, tmp_path: Path):
    import onnx
    from onnx import helper

    from tvm_mobilenet.onnx_file import METADATA_KEY, ExportMetadata
    from tvm_mobilenet.workflow import compile_model

    model = onnx.load(colour_onnx)
    metadata = ExportMetadata.model_validate_json(model.metadata_props[0].value)
    unnamed = metadata.model_copy(update={"class_names": None})
    helper.set_model_props(model, {METADATA_KEY: unnamed.model_dump_json()})
    onnx.save(model, tmp_path / "unnamed.onnx")
    compile_model(tmp_path / "unnamed.onnx", out=tmp_path / "out")
    (prediction,) = classify(tmp_path / "out", [pictures["green"]], threads=1)
    assert prediction.guesses[0].label == "class 1"


def test_a_model_that_does_not_say_how_to_prepare_pictures(colour_onnx, pictures, tmp_path: Path):
    import onnx

    from tvm_mobilenet.workflow import compile_model

    model = onnx.load(colour_onnx)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    compile_model(tmp_path / "bare.onnx", out=tmp_path / "out")
    with pytest.raises(SpecError, match="bare: pictures were given, but its manifest does not say"):
        classify(tmp_path / "out", [pictures["red"]])


def test_an_image_that_is_none(colour_dir: Path, tmp_path: Path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png: not a picture"):
        classify(colour_dir, [tmp_path / "text.png"], threads=1)


def test_a_damaged_artifact(colour_dir: Path, pictures, tmp_path: Path):
    copy = Path(shutil.copytree(colour_dir, tmp_path / "copy"))
    library = open_artifact(copy).library_path
    library.write_bytes(library.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="truncated"):
        classify(copy, [pictures["red"]])
