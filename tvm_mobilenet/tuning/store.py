"""Tuning logs on disk: JSON lines that several processes append to and that nothing tears.

A store is a folder with one folder a target, and in it `records.jsonl`. A record is one write at
the end of the file, made while the folder's lock is held; a round ends with fsync. What a crash or
a full disk leaves of the last line is cut off by the next writer; a reader passes over it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.errors import OutputError, UsageError
from tvm_mobilenet.files import new_file, output_error
from tvm_mobilenet.targets import shipped_folder
from tvm_mobilenet.tuning.records import (
    AnyRecord,
    LineError,
    SessionRecord,
    TrialRecord,
    canonical,
    decode_line,
    encode_line,
)

__all__ = ["FILE_NAME", "Problem", "Reading", "Store", "shipped_store", "user_store"]

logger = logging.getLogger(__name__)

FILE_NAME = "records.jsonl"
_LOCK_NAME = ".lock"
_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Problem:
    """One line that was passed over."""

    place: str
    """File and number of the line."""
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a log holds, and what of it could not be used."""

    trials: tuple[TrialRecord, ...] = ()
    sessions: tuple[SessionRecord, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def summary(self) -> str:
        """Say in one line how many lines were passed over, and why; empty where none were."""
        if not self.problems:
            return ""
        counts = Counter(problem.reason for problem in self.problems)
        first = self.problems[0].place
        said = "; ".join(f"{count} because {reason}" for reason, count in counts.most_common(3))
        return (
            f"{len(self.problems)} lines of the tuning logs were left out: {said} (first {first})"
        )

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.trials + other.trials,
            self.sessions + other.sessions,
            self.problems + other.problems,
        )


def user_store(folder: Path | str | None = None) -> Store:
    """Return the store that searches write to: `folder`, or the user's own."""
    if folder is not None:
        return Store(Path(folder))
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Store(Path(base).expanduser() / "tvm-mobilenet" / "tuning_logs")


def shipped_store() -> Store:
    """Return the store that comes with the project; it is only read."""
    return Store(shipped_folder("tuning_logs"))


class Store:
    """A folder of tuning logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def targets(self) -> list[str]:
        """Return the names of the targets that there is a log for."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{FILE_NAME}"))

    def path(self, target: str) -> Path:
        """Return where the log of a target is, or would be."""
        return self.folder / target / FILE_NAME

    def read(self, target: str) -> Reading:
        """Return everything whole in the log of `target`; no log at all is an empty one.

        A line that is torn, altered or of another format is left out with a reason, and costs
        nothing else.
        """
        return read_log(self.path(target))

    def append(self, target: str, records: Iterable[AnyRecord]) -> None:
        """Add records, one write each, and have them on the disk before this returns.

        Raises:
            OutputError: the log cannot be written; what was in it still is, and no part of a
                record is left behind.
        """
        path = self.path(target)
        try:
            with self._locked(target):
                handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    _mend(handle, path)
                    for record in records:
                        _write_whole(handle, encode_line(record))
                    os.fsync(handle)
                finally:
                    os.close(handle)
        except OSError as err:
            raise output_error(path, err) from err

    def rewrite(self, target: str, keep: Callable[[Reading], Iterable[AnyRecord]]) -> Reading:
        """Replace the log of `target` by what `keep` returns of it; returns what it was before.

        The new file appears whole, with other writers waiting.

        Raises:
            OutputError: it cannot be written; the old one is still there.
        """
        path = self.path(target)
        if not path.is_file():
            raise UsageError(f"no log of target {target!r} in {self.folder}{self._known()}")
        try:
            with self._locked(target):
                before = self.read(target)
                kept = keep(before)
                with new_file(path) as unfinished, unfinished.open("wb") as file:
                    file.writelines(encode_line(record) for record in kept)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as err:
            raise output_error(path, err) from err
        return before

    def merge(self, target: str, reading: Reading) -> int:
        """Add what is not here yet of another log; returns how many records were."""
        here = self.read(target)
        known = {_identity(record) for record in here.trials}
        new: dict[str, AnyRecord] = {}
        for record in reading.trials:
            if _identity(record) not in known:
                new.setdefault(_identity(record), record)
        if new:
            self.append(target, new.values())
        return len(new)

    def _known(self) -> str:
        names = self.targets()
        return f"; there are {', '.join(names)}" if names else "; it is empty"

    @contextmanager
    def _locked(self, target: str) -> Iterator[None]:
        """Hold the lock of a target's folder: `rewrite` replaces the file that could be locked."""
        folder = self.folder / target
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def read_log(path: Path) -> Reading:
    """Return everything whole in one log file.

    Raises:
        OutputError: the file is there and cannot be read.
    """
    trials: list[TrialRecord] = []
    sessions: list[SessionRecord] = []
    problems: list[Problem] = []
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return Reading()
    except OSError as err:
        raise OutputError(
            f"tuning log {path} cannot be read: {err.strerror}; use another with --logs, or none "
            "with --no-logs"
        ) from err
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = decode_line(line)
        except LineError as err:
            problems.append(Problem(f"{path}:{number}", str(err)))
            continue
        if isinstance(record, TrialRecord):
            trials.append(record)
        else:
            sessions.append(record)
    return Reading(tuple(trials), tuple(sessions), tuple(problems))


def _identity(record: TrialRecord) -> str:
    return canonical(record.model_dump(mode="json"))


def _write_whole(handle: int, line: bytes) -> None:
    """Write a line in one call; where the disk takes only a part of it, take that back."""
    size = os.fstat(handle).st_size
    try:
        written = os.write(handle, line)
        if written < len(line):
            # The reason comes with the next attempt.
            os.write(handle, line[written:])
            if os.fstat(handle).st_size < size + len(line):
                raise OSError(28, os.strerror(28))
    except OSError:
        os.ftruncate(handle, size)
        raise


def _mend(handle: int, path: Path) -> None:
    """Cut off what a crash left of the last line, or end it where it is whole."""
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        length = min(_BLOCK_BYTES, start)
        start -= length
        tail = os.pread(handle, length, start) + tail
    last = tail.rpartition(b"\n")[2]
    try:
        decode_line(last)
    except LineError:
        logger.warning("%s: its last line was cut short and is taken off", path)
        os.ftruncate(handle, size - len(last))
        return
    _write_whole(handle, b"\n")
