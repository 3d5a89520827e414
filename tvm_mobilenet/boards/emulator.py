"""An AArch64 board on this machine: the board's own archive, run by QEMU's user-mode emulator.

The agent, TVM's runtime and the compiled libraries are the very files that go to a board; the
emulator translates their instructions and passes their system calls on to this machine's kernel.
What runs is exact, how long it takes says nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tvm_mobilenet.boards.archive import install_board
from tvm_mobilenet.boards.processes import end_session
from tvm_mobilenet.boards.registry import (
    PORT_FILE,
    Board,
    claim_folder,
    list_boards,
    read_board,
    remove_folder,
    write_board,
)
from tvm_mobilenet.boards.sysroot import emulator_command
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import DeviceError, DeviceTimeoutError, UsageError, suggestion
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.rpc.address import LOOPBACK, Address, parse_address
from tvm_mobilenet.rpc.auth import read_key_file
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.rpc.status import agent_status
from tvm_mobilenet.runtime_libs import cache_folder
from tvm_mobilenet.targets import HOST, TargetSpec, load_target, shipped_folder

__all__ = ["ensure_board", "find_board", "instruction_counter", "start_board", "stop_board"]

logger = logging.getLogger(__name__)

DEFAULT_SESSION_TIMEOUT_S = 600.0
_READY_S = 60.0
"""For the agent to listen and answer; it takes about a second on an idle machine."""


def start_board(
    target: TargetSpec,
    *,
    tracker: str | None = None,
    key: str | None = None,
    auth_key_file: Path | None = None,
    session_timeout_s: float = DEFAULT_SESSION_TIMEOUT_S,
    temporary: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Board:
    """Start an emulated board and return it, ready to be used.

    It outlives this process, unless it is temporary; `stop_board` ends it.

    Args:
        target: which board it stands for; its `emulation` names the processor.
        tracker: HOST:PORT of a tracker to register with.
        key: what to register under; the target's name where nothing is said.
        auth_key_file: the key that whoever connects must hold.
        session_timeout_s: the longest that one session may take.
        temporary: it is this process's alone, and swept away should the process be killed.
        environment: variables that the board has beside its own, in place of those of that name.

    Raises:
        UsageError: the tracker's address is none, or the key file cannot be used.
        SpecError: the target cannot be emulated.
        DeviceError: the emulator is not installed, or the board did not come up.
        ToolchainError: the agent or the instruction counter cannot be built.
    """
    if tracker:
        tracker = str(parse_address(tracker, "tracker"))
    command = emulator_command(target)
    counter = instruction_counter()
    auth_key = read_key_file(auth_key_file) if auth_key_file else None
    folder = claim_folder(target.name)
    key = key or target.name
    process: subprocess.Popen[bytes] | None = None
    try:
        agent = install_board(target, folder / "archive")
        for name in ("counts", "work", "tmp"):
            (folder / name).mkdir(mode=0o700)
        command += ["-plugin", f"{_escaped(counter)},dir={_escaped(folder / 'counts')}", str(agent)]
        command += ["--host", LOOPBACK, "--port", "0", "--port-file", str(folder / PORT_FILE)]
        command += ["--workdir", str(folder / "work")]
        command += ["--session-timeout-s", f"{session_timeout_s:g}"]
        if tracker:
            command += ["--tracker", tracker, "--key", key]
        if auth_key_file:
            command += ["--auth-key-file", str(Path(auth_key_file).resolve())]
        process = _spawn(command, folder, environment or {})
        board = Board(
            name=folder.name,
            target=target.name,
            host=LOOPBACK,
            port=0,
            pid=process.pid,
            pid_started=psutil.Process(process.pid).create_time(),
            key=key if tracker else None,
            tracker=tracker,
            auth_key_file=str(Path(auth_key_file).resolve()) if auth_key_file else None,
            started=time.time(),
            owner_pid=os.getpid() if temporary else None,
            owner_started=psutil.Process().create_time() if temporary else None,
            folder=folder,
        )
        write_board(board)
        board = _wait_until_ready(board, process, auth_key)
        # It outlives this object, which would complain of that. `end_session` collects it.
        process.returncode = 0
        return board
    except BaseException:
        # Ctrl-C included: what was started would otherwise stay.
        if process is not None:
            is_ours = process.returncode is None  # once collected, the number may be another's
            end_session(process.pid, psutil.Process(process.pid).create_time() if is_ours else None)
            process.wait()
        remove_folder(folder)
        raise


def stop_board(board: Board) -> None:
    """End a board with all its processes, and remove what it kept.

    Raises:
        DeviceError: a process of it cannot be ended.
    """
    if not end_session(board.pid, board.pid_started):
        raise DeviceError(
            f"emulated board {board.name}: a process of it is stuck in the kernel and cannot be "
            f"ended; see `ps --sid {board.pid}`"
        )
    remove_folder(board.folder)


def find_board(name: str) -> Board:
    """Return the board of that name.

    Raises:
        UsageError: none of that name runs.
    """
    boards = {board.name: board for board in list_boards(starting=True)}
    if name not in boards:
        known = f"; running: {', '.join(boards)}" if boards else "; none is running"
        raise UsageError(f"no emulated board {name!r}{suggestion(name, boards)}{known}")
    return boards[name]


@contextlib.contextmanager
def ensure_board(target: TargetSpec) -> Iterator[Board]:
    """Hand out an emulated board for `target`: one that runs, or one for as long as the block.

    Neither one that asks for a key is taken, nor one that another process has started in this way
    and will stop.

    Raises:
        SpecError: the target cannot be emulated.
        DeviceError: the emulator is not installed, or the board did not come up.
        ToolchainError: the agent or the instruction counter cannot be built.
    """
    for running in list_boards():
        if running.target == target.name and running.is_shared:
            yield running
            return
    board = start_board(target, temporary=True)
    try:
        yield board
    finally:
        stop_board(board)


def instruction_counter() -> Path:
    """Return the emulator's plugin, built for this machine the first time.

    Raises:
        ToolchainError: it cannot be built.
        OutputError: the cache folder cannot be written.
    """
    sources = sorted((shipped_folder("native") / "insn_counter").glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    output = cache_folder() / "insn_counter" / f"{host_machine()}-{digest}.so"
    if not output.exists():
        programs = [path for path in sources if path.suffix == ".c"]
        build_native(programs, output, load_target(HOST), kind="shared")
    return output


def _escaped(path: Path) -> str:
    """Write a path as a value of one of the emulator's options, where a comma separates them."""
    return str(path).replace(",", ",,")


def _spawn(
    command: Sequence[str], folder: Path, more: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    logger.debug("%s", " ".join(command))
    environment = {
        # Nothing of this machine's settings: LD_LIBRARY_PATH would name libraries of another
        # architecture, and the counts depend on the size of the environment.
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder / "work"),
        "TMPDIR": str(folder / "tmp"),
        "TVM_MOBILENET_COUNTS": str(folder / "counts"),
        "TVM_MOBILENET_EMULATED": "1",
        **more,
    }
    with (folder / "agent.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,  # Ctrl-C in this terminal is not meant for the board
        )


def _wait_until_ready(
    board: Board, process: subprocess.Popen[bytes], auth_key: bytes | None
) -> Board:
    """Wait for the agent to write its port down, and see that it answers there."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise DeviceError(
                f"emulated board {board.name}: its agent ended with {how} while starting: "
                f"{_last_words(board)}"
            )
        current = read_board(board.folder)
        if current is not None and current.port:
            agent_status(
                Address(current.host, current.port),
                auth_key=auth_key,
                timeouts=Timeouts.of(max(1.0, deadline - time.monotonic())),
                device=board.name,
            )
            return current
        time.sleep(0.02)
    raise DeviceTimeoutError(
        f"emulated board {board.name}: its agent did not listen within {_READY_S:.0f} s: "
        f"{_last_words(board)}"
    )


def _last_words(board: Board) -> str:
    lines = board.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"
