"""Train a model for what its family is made for, and write its best weights."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from tvm_mobilenet.errors import SpecError, UsageError, error_context
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weights import save_weights
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.training.checkpoint import checkpoint_path
from tvm_mobilenet.training.loop import Training
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.result import TrainResult
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
        progress: told of every step, with loss and accuracy.

    Raises:
        UnknownModelError, SpecError: of the name, or of a number below 1.
        InputFileError, ImageError: the data cannot be used.
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
    progress = progress or NoProgress()
    with error_context(stage="train", model=spec.name):
        task = open_task(spec, data, progress)
        epochs = task.epochs if epochs is None else epochs
        training = Training(spec.name, task, recipe or task.recipe, epochs, seed)
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
