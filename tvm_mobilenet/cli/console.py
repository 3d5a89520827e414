"""What the command line shows: results to stdout, status and errors to stderr.

The one module that knows rich.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich import progress as bars
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from tvm_mobilenet.protocols import NoProgress, Progress

__all__ = [
    "json_ready",
    "print_error",
    "print_json",
    "print_line",
    "print_note",
    "print_table",
    "print_text",
    "print_warning",
    "resumable",
    "set_verbosity",
    "show_progress",
    "verbosity",
]

_FILE_WIDTH = 1000  # columns of a table in a file or a pipe: never a reason to fold
_LINE_INTERVAL_S = 10.0  # between two lines of progress of one task, off a terminal

_out = Console(highlight=False, soft_wrap=True)
_err = Console(highlight=False, soft_wrap=True, stderr=True)
_verbosity = 0


def set_verbosity(level: int) -> None:
    """Set how much stderr says: -1 errors, 0 progress too, 1 stages, 2 details and traces."""
    global _verbosity
    _verbosity = level
    logger = logging.getLogger("tvm_mobilenet")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = RichHandler(console=_err, show_time=level > 1, show_path=level > 1, markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    logger.setLevel(levels.get(level, logging.DEBUG))


def verbosity() -> int:
    """Return what `set_verbosity` set."""
    return _verbosity


def print_line(text: str) -> None:
    """Write one line of the result to stdout."""
    _out.print(escape(text))


def print_text(text: str) -> None:
    """Write a whole document to stdout, as it stands."""
    _out.out(text, end="", highlight=False)


@contextmanager
def resumable() -> Iterator[None]:
    """Say, when a command whose measurements are recorded is interrupted, that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        print_note("what was measured is recorded; the same command goes on from there")
        raise


def print_note(text: str) -> None:
    """Write one line of status to stderr, unless --quiet."""
    if _verbosity >= 0:
        _err.print(escape(text), style="dim")


def print_warning(text: str) -> None:
    """Write one line of warning to stderr, unless --quiet."""
    if _verbosity >= 0:
        _err.print(f"warning: {escape(' '.join(text.split()))}", style="yellow")


def print_error(text: str) -> None:
    """Write one line of error to stderr."""
    _err.print(f"error: {escape(' '.join(text.split()))}", style="bold red")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """Write a table to stdout; columns of numbers, with or without a unit, stand at the right."""
    table = Table(title=title and escape(title), title_justify="left", box=None, pad_edge=False)
    table.show_header = any(columns)
    for index, name in enumerate(columns):
        right = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(
            escape(name), justify="right" if right else "left", no_wrap=index == 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    if _out.is_terminal:
        _out.print(table, soft_wrap=False)
        return
    plain = Console(file=io.StringIO(), width=_FILE_WIDTH, highlight=False, color_system=None)
    with plain.capture() as text:
        plain.print(table)
    for line in text.get().splitlines():
        _out.print(escape(line.rstrip()))


def print_json(value: Any) -> None:
    """Write `value` (records, lists of them, plain data) to stdout as JSON."""
    _out.print(json.dumps(json_ready(value), indent=2), markup=False)


def json_ready(value: Any) -> Any:
    """Turn records into plain data; a number that JSON has no word for becomes null."""
    if isinstance(value, BaseModel):
        return json_ready(value.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: json_ready(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, Enum):
        return json_ready(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return json_ready(value.item())
    return value


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Hand out a `Progress`: bars on a terminal, plain lines elsewhere, nothing with --quiet."""
    if _verbosity < 0:
        yield NoProgress()
    elif not _err.is_terminal:
        yield _Lines()
    else:
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[status]}", markup=False),
        )
        with bars.Progress(*columns, console=_err) as live:
            yield _Bars(live)


class _Bars:
    """Progress as bars of rich, one for each task."""

    def __init__(self, live: bars.Progress) -> None:
        self._live = live
        self._open: list[bars.TaskID] = []

    def start(self, task: str, total: float | None = None) -> None:
        self._open.append(self._live.add_task(escape(task), total=total, status=""))

    def advance(self, amount: float = 1, status: str = "") -> None:
        if self._open:
            update: dict[str, Any] = {"status": status} if status else {}
            self._live.update(self._open[-1], advance=amount, **update)

    def done(self, status: str = "") -> None:
        if self._open:
            task = self._live.tasks[self._live.task_ids.index(self._open.pop())]
            total = task.completed if task.completed else 1
            update: dict[str, Any] = {"status": status} if status else {}
            self._live.update(task.id, total=total, completed=total, **update)


class _Lines:
    """Progress for logs and pipes: a line when a task ends, and now and then while it lasts."""

    def __init__(self) -> None:
        self._open: list[_OpenTask] = []

    def start(self, task: str, total: float | None = None) -> None:
        self._open.append(_OpenTask(task, total))

    def advance(self, amount: float = 1, status: str = "") -> None:
        if not self._open:
            return
        task = self._open[-1]
        task.completed += amount
        if time.monotonic() - task.last_said > _LINE_INTERVAL_S:
            task.last_said = time.monotonic()
            share = f"{100 * task.completed / task.total:.0f} %" if task.total else ""
            print_note(f"{task.name}: {', '.join(filter(None, (share, status)))}")

    def done(self, status: str = "") -> None:
        if self._open:
            task = self._open.pop()
            print_note(f"{task.name}: {status or 'done'} ({time.monotonic() - task.began:.1f} s)")


@dataclasses.dataclass
class _OpenTask:
    name: str
    total: float | None
    completed: float = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    last_said: float = dataclasses.field(default_factory=time.monotonic)


def _is_number(cell: object) -> bool:
    if isinstance(cell, str):
        return not cell or cell.lstrip("-+<")[:1].isdigit()
    return cell is None or isinstance(cell, int | float)
