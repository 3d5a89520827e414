"""What was measured, one line a model, on disk before the next begins.

A line is one write at the end of the file. What a kill leaves of the last one is taken off by the
next run; a reader passes over it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tvm_mobilenet.errors import OutputError
from tvm_mobilenet.files import output_error
from tvm_mobilenet.records import Record

__all__ = ["Conditions", "Journal", "ProbeRecord"]

# History: 1, the first.
_FORMAT_VERSION: Literal[1] = 1


class Conditions(Record):
    """What has to be the same for two costs to be compared."""

    target: str
    fingerprint: str
    """Of the target: everything that schedules depend on."""
    device: str
    """The processor, and the board where there is one."""
    threads: int | None
    """As asked for; None for the device's choice."""
    cpus: tuple[int, ...] = ()
    unit: Literal["ms", "Minstr"]
    logs: bool
    """Whether recorded schedules were used."""
    tvm_mobilenet: str
    """Its version: another one makes other kernels."""


class ProbeRecord(Record):
    """One model that was compiled and measured, or could not be."""

    format_version: Literal[1] = _FORMAT_VERSION
    model: str
    dtype: str
    conditions: Conditions
    failure: str = ""
    """Why there is no cost; empty where there is one."""
    cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of one inference, in `conditions.unit`: the median, or the exact count."""
    low: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    high: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The middle half of the series; None for a count."""
    threads: int = 1
    """That did compute."""
    size_bytes: int | None = None
    """Of the library."""
    peak_bytes: int | None = None
    """That loading and running the model added; None where the device cannot say."""
    warnings: tuple[str, ...] = ()
    date: str = ""


class Journal:
    """A folder's `explore.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "explore.jsonl"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other explorations out of the folder.

        Raises:
            OutputError: there is another one, or the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as err:
            raise output_error(self.path, err) from err
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                raise OutputError(
                    f"output {self.path.parent}: another exploration is writing to it; wait for "
                    "it to end, or give another folder with -o"
                ) from err
            yield
        finally:
            os.close(handle)

    def read(self) -> tuple[list[ProbeRecord], int]:
        """Return the records that are whole, and how many lines are not."""
        records: list[ProbeRecord] = []
        damaged = 0
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], 0
        except OSError as err:
            raise output_error(self.path, err) from err
        for line in lines:
            if not line.strip():
                continue
            try:
                records.append(ProbeRecord.model_validate(json.loads(line)))
            except (ValueError, ValidationError, RecursionError):
                damaged += 1
        return records, damaged

    def append(self, record: ProbeRecord) -> None:
        """Add a record, on the disk when this returns.

        Raises:
            OutputError: it cannot be written; nothing of it is left then.
        """
        line = record.model_dump_json().encode() + b"\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    # A kill in the middle of a line: its rest becomes a damaged line of its own.
                    line = b"\n" + line
                if os.write(handle, line) < len(line):
                    os.ftruncate(handle, size)
                    raise OSError(28, os.strerror(28))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as err:
            raise output_error(self.path, err) from err
