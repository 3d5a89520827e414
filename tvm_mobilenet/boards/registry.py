"""The emulated boards that run on this machine: a folder each, with what is needed to find it.

    BOARDS/NAME/
      board.json    the `Board`
      agent.log     what the agent and the emulator said
      port          where the agent listens, written by the agent
      work/         the agent's; empty between sessions
      counts/       the instruction counter's; empty between sessions

BOARDS is `tvm-mobilenet/boards` in XDG_RUNTIME_DIR, or in XDG_STATE_HOME where there is none. A
folder whose process is gone is swept away by whoever looks next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from tvm_mobilenet.boards.processes import end_session
from tvm_mobilenet.files import new_file, output_error

__all__ = [
    "PORT_FILE",
    "Board",
    "boards_folder",
    "claim_folder",
    "list_boards",
    "read_board",
    "remove_folder",
    "write_board",
]

PORT_FILE = "port"
_RECORD = "board.json"
_NOT_KEPT = {"folder", "port"}
_CLAIM_S = 120.0
"""A folder without a record that is older than this was left behind by a start that was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One emulated board that was started."""

    name: str
    """`rpi4`, or `rpi4-2` where that was taken."""
    target: str
    """Name of the target that it stands for."""
    host: str
    port: int
    """0 until the agent listens."""
    pid: int
    """Of the emulator that runs the agent; it leads a session of its own."""
    pid_started: float
    """When that process began, seconds since 1970: another with the same number is another."""
    key: str | None
    """What it is registered under, or would be."""
    tracker: str | None
    """HOST:PORT, or None where it is registered with none."""
    auth_key_file: str | None
    started: float
    """Seconds since 1970."""
    owner_pid: int | None
    """The process that it was started for and ends with; None where it is everybody's."""
    owner_started: float | None
    folder: Path

    @property
    def address(self) -> str:
        """HOST:PORT, as `--device` takes it."""
        return f"{self.host}:{self.port}"

    @property
    def log_path(self) -> Path:
        """What the agent and the emulator said."""
        return self.folder / "agent.log"

    @property
    def is_shared(self) -> bool:
        """Whether others may use it: it stays until it is stopped, and asks for no key."""
        return self.owner_pid is None and self.auth_key_file is None

    def is_alive(self) -> bool:
        """Whether its process, and the one that it was started for, are still the same."""
        if self.owner_pid is not None and not _runs(self.owner_pid, self.owner_started):
            return False
        return _runs(self.pid, self.pid_started)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "folder": str(self.folder), "address": self.address}


def _runs(pid: int, began: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        same = began is not None and abs(process.create_time() - began) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def boards_folder() -> Path:
    """Return the folder that holds one folder a board; it need not exist."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "tvm-mobilenet/boards"


def claim_folder(target: str) -> Path:
    """Make and return a folder for a new board; its name is the board's.

    Raises:
        OutputError: the folder cannot be made.
    """
    with _locked() as parent:
        number = 1
        while True:
            folder = parent / (target if number == 1 else f"{target}-{number}")
            if not folder.exists():
                folder.mkdir(mode=0o700)
                return folder
            number += 1


def write_board(board: Board) -> None:
    """Keep a board's record; the port is not in it, the agent writes that down itself.

    Raises:
        OutputError: it cannot be written.
    """
    content = {key: value for key, value in asdict(board).items() if key not in _NOT_KEPT}
    with new_file(board.folder / _RECORD) as path:
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_board(folder: Path) -> Board | None:
    """Read a board's record; None where there is none, or one that another version wrote."""
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    names = {field.name for field in fields(Board)} - _NOT_KEPT
    if not isinstance(content, dict) or set(content) != names:
        return None
    return Board(**content, folder=folder, port=_read_port(folder))


def list_boards(*, starting: bool = False) -> list[Board]:
    """Return the boards that are up, in the order in which they were started; sweep the others.

    Args:
        starting: return those too whose agent does not listen yet.

    Raises:
        OutputError: the folder of the boards cannot be used.
    """
    if not boards_folder().is_dir():
        return []
    alive = []
    with _locked() as parent:
        for folder in parent.iterdir():
            board = read_board(folder)
            if board is not None and board.is_alive():
                if board.port or starting:
                    alive.append(board)
            elif folder.is_dir() and (board is not None or _age_s(folder) > _CLAIM_S):
                if board is not None:
                    # It may run yet, without its owner, or its sessions without it.
                    end_session(board.pid, board.pid_started)
                shutil.rmtree(folder)
    return sorted(alive, key=lambda board: board.started)


def remove_folder(folder: Path) -> None:
    """Remove a board's folder; one that is gone already is fine.

    Raises:
        OutputError: it cannot be removed.
    """
    with _locked():
        if folder.exists():
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    """Be the only one that makes and removes folders of boards, for a moment."""
    parent = boards_folder()
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield parent
    except OSError as err:
        raise output_error(parent, err) from err


def _read_port(folder: Path) -> int:
    try:
        return int((folder / PORT_FILE).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def _age_s(folder: Path) -> float:
    return time.time() - folder.stat().st_mtime
