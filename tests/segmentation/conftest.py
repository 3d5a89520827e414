"""A segmenter that was trained, exported and compiled once for all tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from tvm_mobilenet.segmentation.scenes import Scenes, load_scenes

NAME = "lraspp_mobilenet_v3_large_48"
SIDE = 48


@dataclass(frozen=True)
class Trained:
    """A training's results, and the scenes that it was done with."""

    scenes: Scenes
    weights: Path
    quality: float
    """mIoU of the best epoch, as the training saw it."""
    onnx: Path
    artifact: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A few steps on few scenes: enough that masks are no chance, for seconds of training."""
    from tvm_mobilenet.export import export_onnx
    from tvm_mobilenet.models.spec import get_model_spec
    from tvm_mobilenet.models.weights import save_weights
    from tvm_mobilenet.protocols import NoProgress
    from tvm_mobilenet.training.loop import Training
    from tvm_mobilenet.training.recipe import Recipe
    from tvm_mobilenet.training.segmentation import SegmentationTask
    from tvm_mobilenet.workflow import compile_model

    folder = tmp_path_factory.mktemp("segmentation")
    scenes = load_scenes(SIDE, train=96, held_out=24)
    task = SegmentationTask(get_model_spec(NAME), scenes)
    recipe = replace(Recipe(), batch_size=8, warm_up_epochs=1)
    training = Training(NAME, task, recipe, 6, 0)
    training.run(folder / "checkpoint", NoProgress())
    weights = folder / "scenes.safetensors"
    save_weights(training.best_module(), weights, training.description())
    exported = folder / "scenes.onnx"
    export_onnx(NAME, weights=weights, out=exported)
    compile_model(exported, out=folder / "out", use_logs=False)
    return Trained(scenes, weights, training.best.held_out_accuracy, exported, folder / "out")


@pytest.fixture(scope="session")
def picture(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, stretched to what no model takes."""
    path = tmp_path_factory.mktemp("picture") / "street.png"
    pixels, _ = trained.scenes.held_out.scene(0)
    Image.fromarray(pixels).resize((90, 50)).save(path)
    return path
