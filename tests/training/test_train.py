from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tvm_mobilenet.datasets import DIGITS, DIGITS_MODEL, digits_preprocessing, load_dataset
from tvm_mobilenet.errors import ImageError, OutputError, SpecError, TrainError, UsageError
from tvm_mobilenet.models.preprocess import default_preprocessing
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weight_file import describe_weights
from tvm_mobilenet.models.weights import create_model, new_module
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.training.checkpoint import checkpoint_path
from tvm_mobilenet.training.classification import augmented, default_epochs
from tvm_mobilenet.training.recipe import Recipe, learning_rate, new_optimizer
from tvm_mobilenet.training.train import train

NAME = "mobilenet_v1_0.25_32"
TINY = Recipe(batch_size=8, learning_rate=0.003)


class Recorder(NoProgress):
    """Keeps what is reported; stops the training with Ctrl-C after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.tasks: list[tuple[str, float | None]] = []
        self.amounts: list[float] = []
        self.statuses: list[str] = []

    def start(self, task: str, total: float | None = None) -> None:
        self.tasks.append((task, total))
        self.amounts.clear()

    def advance(self, amount: float = 1, status: str = "") -> None:
        self.amounts.append(amount)
        self.statuses.append(status)
        if self.tasks[-1][0].startswith("training") and self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt


@pytest.fixture
def stripes(tmp_path):
    """Two classes that a network tells apart quickly: red stripes across, blue ones down."""
    rng = np.random.default_rng(0)
    for name in ("across", "down"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            wave = np.sin(np.arange(40) / rng.uniform(1.5, 3) + rng.uniform(0, 6))
            grey = np.tile(wave, (40, 1)) if name == "down" else np.tile(wave, (40, 1)).T
            tint = (0.3, 0.6, 1.0) if name == "down" else (1.0, 0.6, 0.3)
            pixels = (127 + 100 * grey)[..., None] * tint + rng.normal(0, 8, (40, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "w.safetensors"


def test_learns_a_folder_and_keeps_the_best_weights(stripes, out):
    result = train(NAME, stripes, out=out, epochs=12, recipe=TINY)
    assert result.held_out_accuracy == max(e.held_out_accuracy for e in result.history) == 1
    assert result.history[result.best_epoch - 1].held_out_accuracy == result.held_out_accuracy
    assert [record.epoch for record in result.history] == list(range(1, 13))
    assert (result.train_images, result.held_out_images) == (32, 8)

    created = create_model(NAME, weights=out)
    held_out = load_dataset(stripes, resolution=32).held_out
    with torch.inference_mode():
        found = created.module(torch.from_numpy(held_out.inputs())).argmax(1).numpy()
    assert (found == held_out.labels).mean() == result.held_out_accuracy
    assert [path.name for path in out.parent.iterdir()] == ["w.safetensors"]


def test_the_file_says_what_it_was_trained_on(stripes, out):
    train(NAME, stripes, out=out, epochs=1, seed=3, recipe=TINY)
    description = describe_weights(out)
    assert description is not None
    assert description.model == NAME
    assert description.class_names == ("across", "down")
    assert description.preprocessing == load_dataset(stripes, resolution=32).preprocessing
    assert description.training is not None
    assert description.training["seed"] == 3
    assert description.training["data"] == "data"
    assert description.training["recipe"] == dataclasses.asdict(TINY)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(stripes, tmp_path):
    files = [
        train(NAME, stripes, out=tmp_path / f"{i}.safetensors", epochs=2, seed=seed, recipe=TINY)
        for i, seed in enumerate((5, 5, 6))
    ]
    assert files[0].sha256 == files[1].sha256 != files[2].sha256


def test_does_not_touch_torchs_global_generator(stripes, out):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(NAME, stripes, out=out, epochs=1, recipe=TINY)
    assert torch.equal(torch.rand(3), expected)


# 4 batches an epoch: within the first, the second and the third epoch.
@pytest.mark.parametrize("steps", [2, 6, 11])
def test_an_interrupted_run_continues_to_the_same_bytes(stripes, tmp_path, steps):
    whole = train(NAME, stripes, out=tmp_path / "whole.safetensors", epochs=3, recipe=TINY)
    out = tmp_path / "parts" / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(NAME, stripes, out=out, epochs=3, recipe=TINY, progress=Recorder(stop_after=steps))
    assert [path.name for path in out.parent.iterdir()] == ["w.safetensors.checkpoint"]
    resumed = train(NAME, stripes, out=out, epochs=3, recipe=TINY)
    assert resumed.resumed_after == (steps - 1) // 4
    assert resumed.history == whole.history
    assert resumed.sha256 == whole.sha256
    assert not checkpoint_path(out).exists()


def interrupted(stripes, out):
    with pytest.raises(KeyboardInterrupt):
        train(NAME, stripes, out=out, epochs=3, recipe=TINY, progress=Recorder(stop_after=6))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"seed": 1}, "another seed (0 there)"),
        ({"epochs": 4}, "another epochs (3 there)"),
        ({"model_name": "mobilenet_v1_0.5_32"}, "another model (mobilenet_v1_0.25_32 there)"),
        ({"recipe": Recipe()}, "another recipe"),
    ],
)
def test_a_checkpoint_of_another_request_is_refused(stripes, out, changed, match):
    interrupted(stripes, out)
    request = {"model_name": NAME, "epochs": 3, "seed": 0, "recipe": TINY} | changed
    with pytest.raises(TrainError, match=re.escape(match)):
        train(data=stripes, out=out, **request)
    assert checkpoint_path(out).exists()


def test_a_checkpoint_of_other_data_is_refused(stripes, out):
    interrupted(stripes, out)
    (stripes / "down" / "0.png").unlink()
    with pytest.raises(TrainError, match="another data"):
        train(NAME, stripes, out=out, epochs=3, recipe=TINY)


def test_a_checkpoint_can_be_ignored(stripes, out):
    interrupted(stripes, out)
    result = train(NAME, stripes, out=out, epochs=1, recipe=TINY, resume=False)
    assert result.resumed_after == 0


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_refused(stripes, out, content):
    interrupted(stripes, out)
    path = checkpoint_path(out)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(TrainError, match="it cannot be read; delete it"):
        train(NAME, stripes, out=out, epochs=3, recipe=TINY)


def test_reports_loss_and_accuracy(stripes, out):
    recorder = Recorder()
    train(NAME, stripes, out=out, epochs=2, recipe=TINY, progress=recorder)
    task, total = recorder.tasks[-1]
    assert task == f"training {NAME}"
    assert total == 8
    assert math.isclose(sum(recorder.amounts), 8)
    assert re.fullmatch(r"epoch 2/2, loss \d+\.\d{3}, accuracy \d+\.\d %", recorder.statuses[-1])


def test_a_loss_that_is_not_finite_ends_the_training(stripes, out):
    recipe = Recipe(batch_size=8, learning_rate=1e30, optimizer="sgd")
    with pytest.raises(TrainError, match="the loss is nan in epoch 1; lower"):
        train(NAME, stripes, out=out, epochs=2, recipe=recipe)
    assert not out.exists()


def test_fewer_pictures_than_a_batch_are_one_batch(stripes, out):
    assert train(NAME, stripes, out=out, epochs=1, recipe=Recipe(batch_size=500)).epochs == 1


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"epochs": 0}, SpecError, "epochs is 0"),
        ({"seed": -1}, SpecError, "seed is -1"),
        ({"out": "w.pth"}, UsageError, "weights are written as"),
        ({"model_name": "mobilenet_v1_0_32"}, SpecError, "alpha is 0"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_read(changed, error, match, tmp_path):
    request = {"model_name": NAME, "data": tmp_path / "none", "out": tmp_path / "w.safetensors"}
    with pytest.raises(error, match=match):
        train(**(request | changed))
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_none_is_found_before_training(stripes, out):
    (stripes / "down" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"x\.png"):
        train(NAME, stripes, out=out, epochs=1, recipe=TINY)
    assert not out.parent.exists()


def test_a_place_that_cannot_be_written_is_found_before_training(stripes, tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(OutputError, match="cannot write"):
        train(NAME, stripes, out=tmp_path / "file" / "w.safetensors", progress=recorder)
    assert not any(task.startswith("training") for task, _ in recorder.tasks)


def test_l2_decay_spares_depthwise_weights_and_batch_norms():
    module = new_module(get_model_spec(NAME), 3)
    decayed, spared = new_optimizer(module, Recipe()).param_groups
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {
        name for name in names.values() if ".bn." in name or "depthwise" in name
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert decayed["weight_decay"] == 4e-5
    assert spared["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "kind"), [("rmsprop", torch.optim.RMSprop), ("sgd", torch.optim.SGD)]
)
def test_both_optimizers_of_the_papers_have_momentum(name, kind):
    optimizer = new_optimizer(nn.Linear(2, 2), Recipe(optimizer=name))
    assert isinstance(optimizer, kind)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_the_learning_rate_decays_exponentially():
    recipe = Recipe(warm_up_epochs=0)
    rates = [learning_rate(recipe, epoch, 5) for epoch in range(5)]
    assert rates[0] == recipe.learning_rate
    assert math.isclose(rates[-1], rates[0] * recipe.final_learning_rate_share)
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    assert all(math.isclose(ratio, ratios[0]) for ratio in ratios)
    assert learning_rate(recipe, 0, 1) == recipe.learning_rate


def test_the_learning_rate_rises_first():
    recipe = Recipe(warm_up_epochs=4, final_learning_rate_share=1)
    shares = [learning_rate(recipe, epoch, 10) / recipe.learning_rate for epoch in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_augmentation_without_amplitude_is_the_central_crop(stripes):
    preprocessing = default_preprocessing(32).model_copy(update={"resize": 36})
    split = load_dataset(stripes, resolution=32, preprocessing=preprocessing).train
    still = Recipe(rotation_deg=0, zoom=0, shift=0)
    found = augmented(split, np.arange(4), False, still, np.random.default_rng(0))
    np.testing.assert_array_equal(found, split.pixels(range(4))[:, 2:34, 2:34])


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(shift=0, zoom=0), Recipe(rotation_deg=0)])
def test_augmentation_changes_every_picture_a_little(stripes, recipe):
    split = load_dataset(stripes, resolution=32, preprocessing=digits_preprocessing(32)).train
    before = split.pixels(np.zeros(20, np.int64)).astype(float)
    found = augmented(split, np.zeros(20, np.int64), False, recipe, np.random.default_rng(0))
    assert len({pixels.tobytes() for pixels in found}) == 20
    centre = slice(12, 20)
    blurred = np.abs(found[:, centre, centre].mean((1, 2)) - before[:, centre, centre].mean((1, 2)))
    assert blurred.max() < 80, "the middle of the picture stays about where it is"


def test_augmentation_mirrors_about_half_where_it_may(stripes):
    split = load_dataset(stripes, resolution=32).train
    still = Recipe(rotation_deg=0, zoom=0, shift=0)
    same = np.zeros(200, np.int64)
    rng = np.random.default_rng(0)
    assert len({p.tobytes() for p in augmented(split, same, False, still, rng)}) == 1
    mirrored = augmented(split, same, True, still, rng)
    assert {p.tobytes() for p in mirrored} == {
        mirrored[0].tobytes(),
        mirrored[0][:, ::-1].tobytes(),
    }
    kept = sum(np.array_equal(p, mirrored[0]) for p in mirrored)
    assert 60 < kept < 140


def test_defaults_for_digits_and_for_folders():
    assert default_epochs(DIGITS) < default_epochs("pictures")
    assert get_model_spec(DIGITS_MODEL).alpha == 0.25


@pytest.mark.slow
def test_a_quarter_width_model_learns_the_digits(out):
    result = train(DIGITS_MODEL, DIGITS, out=out)
    assert result.held_out_accuracy >= 0.98
    assert result.held_out_images == 359


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_0.35_32", "mobilenet_v3_small_0.5_32"])
def test_a_small_one_of_another_family_learns_the_digits(out, name):
    result = train(name, DIGITS, out=out, epochs=15)
    assert result.held_out_accuracy >= 0.95
