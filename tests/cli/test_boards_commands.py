"""The commands that speak to boards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvm_mobilenet.cli.device import parse_cpus
from tvm_mobilenet.errors import SpecError, ToolchainError


def start(*words: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tvm_mobilenet", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def said(log: Path, words: str, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 120
    while words not in (text := log.read_text(errors="replace")):
        assert process.poll() is None, text
        assert time.monotonic() < end, text
        time.sleep(0.05)
    return text.split(words)[1].split()[0]


def end(process: subprocess.Popen[bytes], number: int) -> int:
    os.kill(process.pid, number)
    return process.wait(60)


def test_from_tracker_to_measurement(cli, artifact_dir: Path, tmp_path: Path):
    from tvm_mobilenet.boards.archive import build_agent
    from tvm_mobilenet.targets import load_target

    try:
        build_agent(load_target("host"))
    except ToolchainError as err:
        pytest.skip(f"the agent cannot be built here: {err}")
    key = tmp_path / "key"
    key.write_text("a key of sixteen bytes and more")
    key.chmod(0o600)
    auth = ("--auth-key-file", str(key))
    processes = []
    try:
        log = tmp_path / "tracker.log"
        processes.append(start("tracker", "--port", "0", *auth, log=log))
        tracker = said(log, "tracker at ", processes[0])
        nothing = cli("devices", "--tracker", tracker, *auth)
        assert (nothing.code, nothing.out) == (0, "")
        log = tmp_path / "serve.log"
        words = ("serve", "--port", "0", "--tracker", tracker, "--key", "desk", *auth)
        processes.append(start(*words, log=log))
        board = said(log, "board at ", processes[1])
        while not cli("devices", "--tracker", tracker, *auth, "--json").json["devices"]:
            time.sleep(0.1)

        table = cli("devices", "--tracker", tracker, *auth)
        assert table.code == 0
        assert "desk" in table.out
        assert board in table.out
        assert "free" in table.out
        health = cli("doctor", "--tracker", tracker, "--key", "desk", *auth)
        assert health.code == 0, health.out + health.err
        assert "can be measured on" in health.out

        there = ("--tracker", tracker, "--key", "desk", *auth)
        quick = ("--repeat", "5", "--warmup", "1", "--cool-down-s", "0", "--threads", "1")
        measured = cli("measure", artifact_dir, *there, *quick, "--profile", "--json")
        assert measured.code == 0, measured.err
        assert measured.json["board"]["key"] == "desk"
        assert len(measured.json["profile"]["layers"]) > 1
        shown = cli("measure", artifact_dir, *there, *quick)
        assert "before" in shown.out
        assert "of rest between bursts" in shown.out
        direct = ("--device", board, "--key", "desk", *auth)
        verified = cli("verify", artifact_dir, *direct, "--inputs", 2)
        assert verified.code == 0, verified.err
        verified = cli("verify", artifact_dir, *there, "--inputs", 2, "--drift")
        assert verified.code == 0, verified.err
        refused = cli("measure", artifact_dir, "--tracker", tracker, "--key", "desk")
        assert "--auth-key-file" in refused.fails(4)
    finally:
        codes = [end(process, signal.SIGTERM) for process in reversed(processes)]
    assert codes == [143, 0]


@pytest.mark.arm
@pytest.mark.slow
def test_an_emulated_board_is_there_for_the_call(cli, tiny_onnx: Path, tmp_path: Path, monkeypatch):
    from tvm_mobilenet.boards.registry import list_boards
    from tvm_mobilenet.boards.sysroot import missing_packages

    missing = missing_packages()
    if missing:
        pytest.skip(f"not installed here: {', '.join(missing)}; see `make emulator`")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    out = tmp_path / "pi"
    assert cli("compile", tiny_onnx, "--target", "rpi4", "-o", out).code == 0
    words = ("--emulated", "--threads", "1")
    verified = cli("verify", out, *words, "--inputs", "2", "--drift")
    assert verified.code == 0, verified.err
    assert "beyond a relative L2 of 1e-04: none" in verified.out
    measured = cli("measure", out, *words, "--repeat", "3", "--warmup", "1", "--json")
    assert measured.code == 0, measured.err
    assert measured.json["board"]["before"]["emulated"] is True
    assert "the board is emulated" in measured.json["warnings"][0]
    counted = cli("measure", out, *words, "--count-instructions", "--json")
    assert counted.code == 0, counted.err
    assert counted.json["instructions_per_inference"] > 10_000
    assert list_boards(starting=True) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tracker", "a:1"), "tracker a:1: of which boards?"),
        (("--tracker", "a:1", "--device", "b:1"), "--tracker and --device were given; they excl"),
        (("--device", "a:1", "--emulated"), "--device and --emulated were given; they exclude"),
        (("--key", "pi"), "--key pi: no board was named; give --tracker, --device or --emulated"),
        (("--timeout-s", "3"), "--timeout-s 3.0: no board was named"),
        (("--device", "a"), "device 'a': give HOST:PORT"),
        (("--device", "a:1", "--timeout-s", "-1"), "timeout-s -1: give a number of seconds"),
        (("--cpus", "x"), "cpus 'x': give numbers and ranges"),
    ],
)
@pytest.mark.parametrize("command", ["measure", "verify"])
def test_options_that_do_not_go_together(cli, artifact_dir, command: str, words, says: str):
    assert says in cli(command, artifact_dir, *words).fails(2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "only an emulated board counts; add --emulated"),
        (("--device", "a:1"), "only an emulated board counts"),
        (("--emulated", "--threads", "2"), "--threads 2: threads that wait"),
        (("--emulated", "--profile"), "takes no option of timing"),
        (("--emulated", "--repeat", "3"), "takes no option of timing"),
    ],
)
def test_counting_is_not_timing(cli, artifact_dir: Path, words, says: str):
    assert says in cli("measure", artifact_dir, "--count-instructions", *words).fails(2)


def test_a_board_that_is_not_there(cli, artifact_dir: Path):
    line = cli("measure", artifact_dir, "--device", "127.0.0.1:1").fails(4)
    assert line.startswith("device 127.0.0.1:1: connect: 127.0.0.1:1: connection refused; is it")


def test_a_doctor_that_finds_something_says_all_and_ends_with_four(cli):
    outcome = cli("doctor", "--device", "127.0.0.1:1")
    assert outcome.code == 4
    assert "broken" in outcome.out
    assert "not reached" in outcome.out
    assert outcome.err.strip().splitlines()[-1].startswith("error: device 127.0.0.1:1: session: ")
    assert cli("doctor", "--device", "127.0.0.1:1", "--json").json["healthy"] is False


def test_listening_for_others_asks_for_a_key(cli):
    for command in ("tracker", "serve"):
        assert "no --auth-key-file was given" in cli(command, "--host", "0.0.0.0").fails(2)


def test_a_board_is_served_under_a_key_or_not_at_all(cli):
    assert "belong together" in cli("serve", "--key", "desk").fails(2)


def test_a_tracker_that_is_not_there(cli):
    assert "refused" in cli("devices", "--tracker", "127.0.0.1:1").fails(4)


@pytest.mark.parametrize(
    ("text", "cpus"), [(None, ()), ("0", (0,)), ("4,5", (4, 5)), ("0,4-7", (0, 4, 5, 6, 7))]
)
def test_a_list_of_processors(text, cpus):
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "3-1", "1,1", "0-9999"])
def test_what_is_no_list_of_processors(text: str):
    with pytest.raises(SpecError, match="cpus "):
        parse_cpus(text)


def test_processors_are_chosen_here_too(cli, artifact_dir: Path):
    last = max(os.sched_getaffinity(0))
    words = ("--repeat", "3", "--warmup", "0", "--json")
    found = cli("measure", artifact_dir, "--cpus", str(last), *words)
    assert found.code == 0, found.err
    assert found.json["threads"] == 1
    assert "cpus 4095: this process may not run there" in cli(
        "measure", artifact_dir, "--cpus", "4095"
    ).fails(2)
