"""The command line of emulated boards."""

from __future__ import annotations

import pytest

from tvm_mobilenet.boards.sysroot import missing_packages


@pytest.fixture(autouse=True)
def _own_boards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_list_says_that_there_is_none(cli):
    outcome = cli("board", "list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "no emulated board is running" in outcome.err
    assert cli("board", "list", "--json").json == []


def test_a_real_board_is_not_started_from_here(cli):
    assert "add --emulated, or copy" in cli("board", "start", "--target", "rpi4").fails(2)


def test_a_target_that_cannot_be_emulated_is_a_usage_error(cli):
    outcome = cli("board", "start", "--target", "generic-armv7", "--emulated")
    assert "only aarch64 boards are emulated" in outcome.fails(2)


def test_what_is_missing_is_one_line_and_exit_code_4(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = cli("board", "start", "--target", "rpi4", "--emulated")
    assert "qemu-user" in outcome.fails(4)


@pytest.mark.parametrize("words", [(), ("rpi4", "--all")])
def test_stop_wants_a_name_or_all(cli, words):
    assert "give the name of a board, or --all" in cli("board", "stop", *words).fails(2)


def test_stopping_what_does_not_run_is_a_usage_error(cli):
    assert "no emulated board 'rpi4'; none is running" in cli("board", "stop", "rpi4").fails(2)
    assert cli("board", "stop", "--all").code == 0


@pytest.mark.arm
@pytest.mark.skipif(bool(missing_packages()), reason=f"not installed: {missing_packages()}")
def test_start_list_stop(cli):
    try:
        started = cli("board", "start", "--target", "rpi4", "--emulated", "--json")
        assert started.code == 0, started.err
        assert started.json["name"] == "rpi4"
        assert cli("board", "list", "--json").json == [started.json]
        table = cli("board", "list").out
        assert started.json["address"] in table
        assert cli("board", "stop", "rpi5").fails(2).endswith("running: rpi4")
    finally:
        stopped = cli("board", "stop", "--all")
    assert stopped.out == "rpi4 stopped\n"
    assert cli("board", "list", "--json").json == []
