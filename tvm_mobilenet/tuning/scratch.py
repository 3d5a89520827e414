"""The folder of a search's files that come and go; one that a killed search left is taken away."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["scratch_folder"]

_PREFIX = "tvm-mobilenet-tune-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Hand out a new folder, named after this process; remove it, and those of dead processes.

    The workers of a search that is killed remove its folder, unless it had none yet.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            # Another user's cannot be removed, and is none of ours.
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        yield Path(folder)
