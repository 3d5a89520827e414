"""The checkpoint of an unfinished training: tensors and plain values, never unpickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tvm_mobilenet.errors import TrainError
from tvm_mobilenet.files import new_file

__all__ = ["checkpoint_path", "read_checkpoint", "write_checkpoint"]

_VERSION = 1


def checkpoint_path(out: Path | str) -> Path:
    """Return where the checkpoint of an unfinished training lies: beside the weight file."""
    return Path(f"{out}.checkpoint")


def write_checkpoint(checkpoint: Path, content: dict[str, Any]) -> None:
    """Write everything that the next epoch depends on; the file appears whole or not at all."""
    with new_file(checkpoint) as temporary:
        torch.save({"version": _VERSION, **content}, temporary)


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    Raises:
        TrainError: the file is damaged, or of another version.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        version = content["version"]
    # The reader raises whatever a damaged file leads it into.
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.PickleError) as err:
        raise TrainError(
            f"checkpoint {checkpoint}: it cannot be read; delete it to begin anew"
        ) from err
    if version != _VERSION:
        raise TrainError(
            f"checkpoint {checkpoint}: version {version}, but this program reads {_VERSION}; "
            "delete it to begin anew"
        )
    checked: dict[str, Any] = content
    return checked
