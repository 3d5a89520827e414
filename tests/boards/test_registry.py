"""Boards on record: found while their process runs, swept away after, never one name for two."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import psutil

from tvm_mobilenet.boards import registry
from tvm_mobilenet.boards.registry import (
    PORT_FILE,
    Board,
    boards_folder,
    claim_folder,
    list_boards,
    read_board,
    remove_folder,
    write_board,
)


def record(folder, pid: int | None = None, **changes) -> Board:
    """A board whose process is this test's own, unless another is given."""
    pid = pid or os.getpid()
    values = {
        "name": folder.name,
        "target": "rpi4",
        "host": "127.0.0.1",
        "port": 0,
        "pid": pid,
        "pid_started": psutil.Process(os.getpid()).create_time(),
        "key": None,
        "tracker": None,
        "auth_key_file": None,
        "started": time.time(),
        "owner_pid": None,
        "owner_started": None,
        "folder": folder,
    }
    board = Board(**{**values, **changes})
    write_board(board)
    return board


def test_the_state_is_in_the_runtime_folder_or_in_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert boards_folder() == tmp_path / "state/tvm-mobilenet/boards"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert boards_folder() == tmp_path / "run/tvm-mobilenet/boards"


def test_there_are_none_where_nothing_was_ever_started(own_boards):
    assert list_boards() == []
    assert not own_boards.exists()


def test_a_board_is_listed_once_its_agent_has_written_its_port(own_boards):
    board = record(claim_folder("rpi4"))
    assert list_boards() == []
    assert list_boards(starting=True) == [board]
    (board.folder / PORT_FILE).write_text("9123\n")
    (listed,) = list_boards()
    assert listed.address == "127.0.0.1:9123"
    assert read_board(board.folder) == listed
    remove_folder(board.folder)


def test_two_of_a_target_have_names_of_their_own(own_boards):
    names = [claim_folder("rpi4").name for _ in range(3)]
    assert names == ["rpi4", "rpi4-2", "rpi4-3"]


def test_claims_at_the_same_time_do_not_meet(own_boards):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.extend(claim_folder("rpi4") for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 40


def test_sweeps_a_board_whose_process_is_gone(own_boards):
    board = record(claim_folder("rpi4"), pid=2**22 - 1)
    assert list_boards(starting=True) == []
    assert not board.folder.exists()


def test_sweeps_a_board_whose_number_is_another_process_now(own_boards):
    board = record(claim_folder("rpi4"), pid_started=time.time() - 3600)
    assert list_boards(starting=True) == []
    assert not board.folder.exists()


def test_sweeps_a_board_whose_owner_was_killed(own_boards):
    board_process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        began = psutil.Process(board_process.pid).create_time()
        board = record(
            claim_folder("rpi4"),
            pid=board_process.pid,
            pid_started=began,
            owner_pid=2**22 - 1,
            owner_started=began,
        )
        assert not board.is_shared
        assert list_boards(starting=True) == []
        assert not board.folder.exists()
        assert board_process.poll() is not None
    finally:
        board_process.kill()
        board_process.wait()


def test_keeps_a_folder_that_is_being_made_and_sweeps_one_left_behind(own_boards, monkeypatch):
    folder = claim_folder("rpi4")
    list_boards()
    assert folder.exists()
    monkeypatch.setattr(registry, "_CLAIM_S", -1.0)
    list_boards()
    assert not folder.exists()


def test_a_damaged_record_counts_as_none(own_boards):
    folder = claim_folder("rpi4")
    for text in ("{", "[]", "{}", '{"name": "rpi4"}'):
        (folder / "board.json").write_text(text)
        assert read_board(folder) is None
    assert list_boards(starting=True) == []


def test_removing_twice_is_fine(own_boards):
    folder = claim_folder("rpi4")
    remove_folder(folder)
    remove_folder(folder)
    assert not folder.exists()
