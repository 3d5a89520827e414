"""A program under the emulator, and the instructions that it retired between its marks."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.absence import EngineUnavailableError
from tvm_mobilenet.boards.emulator import instruction_counter

__all__ = ["CLASSES", "count_inference", "counter_option", "inference_classes"]

CLASSES = ("fma", "simd", "load_store", "branch", "other")
_RECORD = struct.Struct(f"<{2 + len(CLASSES)}Q")
_RUN_S = 900


def counter_option(folder: Path) -> list[str]:
    """Return the emulator's words that have its counter write into `folder`."""
    return ["-plugin", f"{instruction_counter()},dir={folder}"]


def count_inference(
    command: Sequence[str], folder: Path, environment: dict[str, str]
) -> dict[str, int]:
    """Run a program that marks one inference, then three; return the half of their difference.

    Raises:
        EngineUnavailableError: it failed, took too long or set other marks.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_RUN_S,
            # Nothing of this machine's environment: its libraries are of another architecture.
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailableError(f"under the emulator it took over {_RUN_S} s") from None
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineUnavailableError(
            f"under the emulator it ended with {result.returncode}: {said[-1]}"
        )
    files = sorted(folder.glob("*.counts"))
    if len(files) != 1:
        raise EngineUnavailableError(f"{len(files)} files of counts were written, expected is one")
    return inference_classes(files[0].read_bytes())


def inference_classes(records: bytes) -> dict[str, int]:
    """Return the instructions of one inference by class from a counter's file.

    Its records are begin and end of one inference (slot 1) and of three (slot 2).
    """
    found = list(_RECORD.iter_unpack(records))
    marks = [record[:2] for record in found]
    if marks != [(1, 1), (2, 1), (1, 2), (2, 2)]:
        raise EngineUnavailableError(f"the marks are {marks}, expected is a pair for slots 1 and 2")
    values = [np.array(record[2:], np.int64) for record in found]
    per_inference = ((values[3] - values[2]) - (values[1] - values[0])) // 2
    return dict(zip(CLASSES, map(int, per_inference), strict=True))
