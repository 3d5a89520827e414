"""Emulated boards: started, found, used, stopped; nothing is left, whatever goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tvm_mobilenet.boards import emulator as module
from tvm_mobilenet.boards.emulator import ensure_board, find_board, start_board, stop_board
from tvm_mobilenet.boards.registry import list_boards
from tvm_mobilenet.errors import DeviceError, DeviceTimeoutError, DeviceUnreachableError, UsageError
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.auth import read_key_file
from tvm_mobilenet.rpc.status import agent_status
from tvm_mobilenet.rpc.tracker import Tracker
from tvm_mobilenet.rpc.tracker_client import tracker_state
from tvm_mobilenet.targets import load_target

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("emulator", "own_boards")]


def processes_of(board) -> list[int]:
    """Whatever has the board's folder in its command line."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(board.folder) in word for word in process.info["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    ("target", "cpu"),
    [
        ("rpi3", "Cortex-A53"),
        ("rpi4", "Cortex-A72"),
        ("rpi5", "Cortex-A76"),
        ("rk3588", "Cortex-A76"),
    ],
)
def test_starts_answers_and_stops(target, cpu, own_boards):
    board = start_board(load_target(target))
    assert list_boards() == [board]
    assert find_board(target) == board
    status = agent_status(parse_address(board.address))
    assert status.state == "free"
    assert status.facts.cpu == cpu
    assert status.facts.machine == "aarch64"
    assert status.facts.emulated
    assert processes_of(board)
    stop_board(board)
    assert processes_of(board) == []
    assert list_boards() == []
    assert [path.name for path in own_boards.iterdir()] == [".lock"]


def test_two_starts_at_once_make_two_boards():
    boards = []
    threads = [
        threading.Thread(target=lambda: boards.append(start_board(load_target("rpi4"))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert sorted(board.name for board in boards) == ["rpi4", "rpi4-2"]
        assert len({board.port for board in boards}) == 2
        assert {board.name for board in list_boards()} == {"rpi4", "rpi4-2"}
    finally:
        for board in boards:
            stop_board(board)


def test_a_board_with_a_key_lets_in_who_holds_it(tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("a secret of more than sixteen bytes")
    key.chmod(0o600)
    board = start_board(load_target("rpi4"), auth_key_file=key)
    try:
        address = parse_address(board.address)
        assert agent_status(address, auth_key=read_key_file(key)).state == "free"
        with pytest.raises((DeviceUnreachableError, DeviceTimeoutError)):
            agent_status(address)
        with ensure_board(load_target("rpi4")) as other:
            assert other.name != board.name, "a board with a key is not for everybody"
    finally:
        stop_board(board)


def test_a_running_board_is_used_and_left_running():
    board = start_board(load_target("rpi4"))
    try:
        with ensure_board(load_target("rpi4")) as found:
            assert found == board
        assert list_boards() == [board]
        with ensure_board(load_target("rpi3")) as other:
            assert other.target == "rpi3"
            with ensure_board(load_target("rpi3")) as third:
                assert third.name == "rpi3-2", "the other is stopped when its user is done"
        assert list_boards() == [board]
    finally:
        stop_board(board)


def test_a_board_that_was_killed_is_swept(own_boards):
    board = start_board(load_target("rpi4"))
    os.kill(board.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while list_boards() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list_boards() == []
    assert processes_of(board) == []
    assert not board.folder.exists()
    with pytest.raises(UsageError, match="no emulated board 'rpi4'; none is running"):
        find_board("rpi4")


def test_stop_ends_a_session_that_computes(own_boards):
    from tvm_mobilenet.rpc.session import open_session

    board = start_board(load_target("rpi4"))
    session = open_session(address=parse_address(board.address))
    try:
        assert len(processes_of(board)) == 2, "the agent and its session"
        stop_board(board)
        assert processes_of(board) == []
        assert not board.folder.exists()
    finally:
        session.close()


def test_an_address_that_is_none_starts_nothing(own_boards):
    with pytest.raises(UsageError, match="tracker 'here'"):
        start_board(load_target("rpi4"), tracker="here")
    assert not own_boards.exists()


def test_says_why_the_agent_did_not_start(own_boards, monkeypatch):
    def broken(_target, folder: Path) -> Path:
        folder.mkdir()
        (folder / "agent").write_text("this is no program")
        return folder / "agent"

    monkeypatch.setattr(module, "install_board", broken)
    with pytest.raises(DeviceError, match=r"rpi4: its agent ended with code \d+ while starting: "):
        start_board(load_target("rpi4"))
    assert [path.name for path in own_boards.iterdir()] == [".lock"]


def test_gives_up_on_an_agent_that_never_listens(own_boards, monkeypatch):
    monkeypatch.setattr(module, "_READY_S", 0.05)
    with pytest.raises(DeviceTimeoutError, match="its agent did not listen within"):
        start_board(load_target("rpi4"))
    assert [path.name for path in own_boards.iterdir()] == [".lock"]


@pytest.fixture
def tracker_address() -> Iterator[str]:
    """A tracker of the test's own, run by a thread."""
    loop = asyncio.new_event_loop()
    tracker = Tracker()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        start = asyncio.run_coroutine_threadsafe(tracker.start(port=0), loop)
        yield str(start.result(timeout=10))
        asyncio.run_coroutine_threadsafe(tracker.stop(), loop).result(timeout=10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


def registered(address: str) -> list[tuple[str, str]]:
    state = tracker_state(parse_address(address))
    return [(board.key, str(board.address)) for board in state.boards]


def test_registers_with_a_tracker_under_the_target_s_name(tracker_address):
    board = start_board(load_target("rpi4"), tracker=tracker_address)
    try:
        assert board.key == "rpi4"
        deadline = time.monotonic() + 10
        while not registered(tracker_address) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert registered(tracker_address) == [("rpi4", board.address)]
    finally:
        stop_board(board)
