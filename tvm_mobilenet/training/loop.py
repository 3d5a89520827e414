"""The epochs of a training, with a checkpoint after each, whatever the task.

The same request gives the same weights, byte for byte, on the same machine with the same number of
threads; a run that was interrupted and goes on from its checkpoint gives them too. To that end
every epoch draws from its own random generators, seeded by (seed, epoch).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvm_mobilenet.errors import TrainError
from tvm_mobilenet.models.weight_file import WeightsDescription
from tvm_mobilenet.models.weights import Module, batch_norm_eps
from tvm_mobilenet.protocols import Progress
from tvm_mobilenet.training.checkpoint import read_checkpoint, write_checkpoint
from tvm_mobilenet.training.recipe import Recipe, learning_rate, new_optimizer
from tvm_mobilenet.training.result import EpochRecord
from tvm_mobilenet.training.task import Indices, Task, batches

__all__ = ["Start", "Training", "seeded_torch"]


@dataclass(frozen=True)
class Start:
    """A module that training goes on from."""

    module: Module
    identity: str
    """What tells it from others: the hash of its file, and what was done to it."""
    pruned: float | None = None
    """Share of the multiply-adds that is left."""


class Training:
    """The state of one training, from epoch to epoch.

    Args:
        model: its name.
        task: what it learns, and on what.
        recipe: how.
        epochs: passes over the training pictures.
        seed: of all that is drawn.
        start: where it begins; None for a new module with seeded weights.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        recipe: Recipe,
        epochs: int,
        seed: int,
        start: Start | None = None,
    ) -> None:
        self.model = model
        self.task = task
        self.recipe = recipe
        self.epochs = epochs
        self.seed = seed
        self.history: list[EpochRecord] = []
        self.start = start
        self.module = start.module if start else task.new_module(recipe, seed)
        self.optimizer = new_optimizer(self.module, recipe)
        self.best_state = _copy_of_state(self.module)

    @property
    def best(self) -> EpochRecord:
        """The epoch whose weights are kept: the highest measure, then the lowest loss."""
        return max(self.history, key=lambda e: (e.held_out_accuracy, -e.held_out_loss, -e.epoch))

    def run(self, checkpoint: Path, progress: Progress) -> None:
        """Do the epochs that are left, and write a checkpoint after each."""
        steps = len(batches(np.arange(self.task.train_images), self.recipe.batch_size))
        progress.start(f"training {self.model}", steps * self.epochs)
        progress.advance(steps * len(self.history), self._status())
        while len(self.history) < self.epochs:
            record = self._epoch(progress)
            self.history.append(record)
            if self.best is record:
                self.best_state = _copy_of_state(self.module)
            self.save(checkpoint)
        progress.done(self._status())

    def _epoch(self, progress: Progress) -> EpochRecord:
        epoch = len(self.history)
        rate = learning_rate(self.recipe, epoch, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.seed, epoch])
        losses: list[float] = []
        self.module.train()
        with seeded_torch(rng):
            for indices in batches(rng.permutation(self.task.train_images), self.recipe.batch_size):
                losses.append(self._step(indices, rng))
                progress.advance(1, self._status(losses))
        loss, measure = self.task.evaluate(self.module)
        return EpochRecord(
            epoch=epoch + 1,
            learning_rate=rate,
            train_loss=sum(losses) / len(losses),
            held_out_loss=loss,
            held_out_accuracy=measure,
        )

    def _step(self, indices: Indices, rng: np.random.Generator) -> float:
        self.optimizer.zero_grad()
        loss = self.task.loss(self.module, indices, self.recipe, rng)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainError(
                f"training {self.model}: the loss is {value} in epoch "
                f"{len(self.history) + 1}; lower the recipe's learning_rate, which is "
                f"{self.recipe.learning_rate}"
            )
        return value

    def _status(self, losses: list[float] | None = None) -> str:
        done = len(self.history)
        parts = [f"epoch {min(done + 1, self.epochs)}/{self.epochs}"]
        if losses:
            parts.append(f"loss {losses[-1]:.3f}")
        elif self.history:
            parts.append(f"loss {self.history[-1].train_loss:.3f}")
        if self.history:
            parts.append(f"{self.task.measure} {100 * self.history[-1].held_out_accuracy:.1f} %")
        return ", ".join(parts)

    def best_module(self) -> Module:
        """Return the module with the best epoch's weights in it."""
        self.module.load_state_dict(self.best_state)
        return self.module.eval()

    def description(self) -> WeightsDescription:
        """Describe the best weights for their file."""
        task = self.task
        return WeightsDescription(
            model=self.model,
            num_classes=len(task.class_names),
            class_names=task.class_names,
            preprocessing=task.preprocessing,
            batch_norm_eps=batch_norm_eps(self.module),
            pruned=self.start.pruned if self.start else None,
            training={
                "data": Path(task.data_name).name,
                "data_sha256": task.data_sha256,
                "epochs": self.epochs,
                "seed": self.seed,
                "best_epoch": self.best.epoch,
                "measure": task.measure,
                "held_out_accuracy": self.best.held_out_accuracy,
                "recipe": asdict(self.recipe),
            },
        )

    def _request(self) -> dict[str, Any]:
        """Return what two runs must share for one to continue the other."""
        start = {"start": self.start.identity} if self.start else {}
        return start | {
            "model": self.model,
            "data": self.task.data_sha256,
            "epochs": self.epochs,
            "seed": self.seed,
            "recipe": asdict(self.recipe),
        }

    def save(self, checkpoint: Path) -> None:
        """Write everything that the next epoch depends on."""
        content = {
            "request": json.dumps(self._request()),
            "history": json.dumps([record.model_dump() for record in self.history]),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_state,
        }
        write_checkpoint(checkpoint, content)

    def restore(self, checkpoint: Path) -> int:
        """Continue from a checkpoint; returns the number of epochs that it has behind it."""
        content = read_checkpoint(checkpoint)
        theirs, ours = json.loads(content["request"]), self._request()
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            name = differing[0]
            found = f" ({theirs.get(name)} there)" if name in ("model", "epochs", "seed") else ""
            raise TrainError(
                f"checkpoint {checkpoint}: it is of a training with another {name}{found}; repeat "
                "that request to continue it, or delete the file to begin anew"
            )
        self.history = [EpochRecord.model_validate(r) for r in json.loads(content["history"])]
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.best_state = content["best"]
        return len(self.history)


@contextmanager
def seeded_torch(rng: np.random.Generator) -> Iterator[None]:
    """Let torch's global generator, which dropout uses, follow `rng` for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        yield


def _copy_of_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}
