"""Train a model for what its family is made for, and write its best weights."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from torch import nn

from tvm_mobilenet.errors import SpecError, UsageError, WeightsError, error_context
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.models.spec import ModelSpec, get_model_spec
from tvm_mobilenet.models.weights import create_model, save_weights
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.training.checkpoint import checkpoint_path
from tvm_mobilenet.training.loop import Start, Training
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.result import TrainResult
from tvm_mobilenet.training.task import Task
from tvm_mobilenet.training.tasks import open_task

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(
    model_name: str,
    data: str | Path,
    *,
    out: Path | str,
    epochs: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    resume: bool = True,
    weights: Path | str | None = None,
    prune: float | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a model and write its best weights, by the task's measure on the held-out fifth.

    After every epoch the state goes into `checkpoint_path(out)`. The same call continues from
    there; the file is removed when the weights are written.

    Args:
        model_name: of a family and a size, such as `mobilenet_v2_0.35_96`; the number of classes
            is the data's.
        data: `digits`, or a folder with one sub-folder of pictures for each class.
        out: the weight file to write, `.safetensors`.
        epochs: passes over the training pictures; None for the data set's default.
        seed: of the initial weights, the order of the pictures and the augmentation. The split
            into training and held-out pictures does not depend on it.
        recipe: None for the papers'.
        resume: False to begin anew where there is a checkpoint.
        weights: of the same classes, to go on from; only together with `prune`.
        prune: take channels out of `weights` until this share of the multiply-adds is left, and
            train what remains.
        progress: told of every step, with loss and accuracy.

    Raises:
        UnknownModelError, SpecError: of the name, or of a number below 1.
        InputFileError, ImageError: the data cannot be used.
        WeightsError: `weights` are damaged, or of another model or other classes.
        TrainError: the loss is no longer finite, or the checkpoint is of another request.
        OutputError: `out` cannot be written.
    """
    started = time.perf_counter()
    spec = get_model_spec(model_name)
    out = Path(out)
    if out.suffix != ".safetensors":
        raise UsageError(f"weights {out}: weights are written as .safetensors; name it so")
    if epochs is not None and epochs < 1:
        raise SpecError(f"epochs is {epochs}, but at least 1 is needed")
    if seed < 0:
        raise SpecError(f"seed is {seed}, but a seed is 0 or more")
    if (weights is None) != (prune is None):
        given, missing = ("prune", "weights") if weights is None else ("weights", "prune")
        raise UsageError(f"{given} was given without {missing}; pruning needs both")
    progress = progress or NoProgress()
    with error_context(stage="train", model=spec.name):
        task = open_task(spec, data, progress)
        epochs = task.epochs if epochs is None else epochs
        recipe = recipe or task.recipe
        start = None
        if weights is not None and prune is not None:
            start = _pruned(spec, task, recipe, Path(weights), prune, progress)
        training = Training(spec.name, task, recipe, epochs, seed, start)
        checkpoint = checkpoint_path(out)
        resumed_after = training.restore(checkpoint) if resume and checkpoint.exists() else 0
        # Written before the first epoch too: a place that cannot be written shows at once.
        training.save(checkpoint)
        training.run(checkpoint, progress)
        save_weights(training.best_module(), out, training.description())
        checkpoint.unlink(missing_ok=True)
    best = training.best
    logger.info("%s: %s %.4f after epoch %d", out, task.measure, best.held_out_accuracy, best.epoch)
    return TrainResult(
        model=spec.name,
        data=task.data_name,
        weights=str(out),
        sha256=sha256_of(out),
        class_names=task.class_names,
        train_images=task.train_images,
        held_out_images=task.held_out_images,
        epochs=epochs,
        seed=seed,
        measure=task.measure,
        best_epoch=best.epoch,
        held_out_accuracy=best.held_out_accuracy,
        held_out_loss=best.held_out_loss,
        history=tuple(training.history),
        resumed_after=resumed_after,
        seconds=time.perf_counter() - started,
    )


def _pruned(
    spec: ModelSpec, task: Task, recipe: Recipe, weights: Path, share: float, progress: Progress
) -> Start:
    """Take channels out of trained weights; their classes have to be the task's."""
    from tvm_mobilenet.training.pruning import check_share, prune

    check_share(share)
    created = create_model(spec.name, weights=weights)
    if created.module.num_classes != len(task.class_names):
        raise WeightsError(
            f"weights {weights}: they tell {created.module.num_classes} classes apart, but the "
            f"data has {len(task.class_names)}; prune with the data that they were trained on"
        )
    progress.start("pruning")
    found = prune(created.module, spec.resolution, share)
    progress.done(f"{100 * found.share:.0f} % of the multiply-adds are left")
    for norm in found.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = recipe.batch_norm_momentum
    identity = f"{created.origin.weights_sha256} pruned to {share:g}"
    return Start(found.module, identity, found.share)
