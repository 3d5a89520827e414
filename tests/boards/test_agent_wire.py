"""What strangers send: garbage, too much, too little, wrong keys. None of it stops the agent."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.boards.agents import Agent, Program, eventually, hello, receive, running

KEY = b"correct horse battery staple"


def is_closed(connection: socket.socket) -> bool:
    """Whether the agent closes, without having said anything."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 64,
        b"TVMMXX99",
        b"TVMMNA01" + bytes(32),  # this agent asks for no key
        struct.pack("<ii", 0xFF271, -1),
        struct.pack("<ii", 0xFF271, 1 << 30),
        struct.pack("<ii", 0xFF271, 0),
        hello("server:x"),
        hello("client"),
        hello("client:" + "x" * 900),
        hello("\0\0\0\0"),
    ],
)
def test_garbage_is_closed(native_agent: Agent, data: bytes):
    assert is_closed(native_agent.socket(data))
    native_agent.works()


def test_random_bytes_by_the_hundred(native_agent: Agent):
    rng = np.random.default_rng(7)
    before = native_agent.descriptors()
    for size in rng.integers(1, 5000, 300):
        with native_agent.socket(rng.bytes(int(size))):
            pass
    native_agent.works()
    eventually(lambda: native_agent.descriptors() <= before, "no descriptor left open")


def test_a_frame_that_is_too_large(agent: Agent):
    connection = agent.socket(hello())
    receive(connection, 8 + len("server:"))
    connection.sendall(struct.pack("<Q", 1 << 62))
    answer = connection.recv(4096)
    assert b"a frame of 4611686018427387904 bytes was announced, 1073741824 are the most" in answer
    assert agent.last_end()["end"] == "exit"
    agent.works()


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<Qi", 4, 77),  # no such code
        struct.pack("<Qi", 4, 3),  # a call before the session has begun
        struct.pack("<Qi", 4, 2),  # the beginning of one, cut off
        struct.pack("<Qiq", 12, 3, 0x4141414141414141) + bytes(100),
        struct.pack("<Q", 1000) + b"\xff" * 1000,
    ],
)
def test_nonsense_in_a_session_ends_the_session(agent: Agent, frame: bytes):
    connection = agent.socket(hello())
    receive(connection, 8 + len("server:"))
    connection.sendall(frame)
    while connection.recv(4096):
        pass
    assert agent.last_end()["end"] in ("exit", "signal", "closed")
    agent.works()


def test_a_session_of_random_frames_by_the_dozen(native_agent: Agent):
    rng = np.random.default_rng(11)
    for _ in range(30):
        connection = native_agent.socket(hello())
        receive(connection, 8 + len("server:"))
        for _ in range(4):
            size = int(rng.integers(4, 200))
            frame = struct.pack("<Qi", size, int(rng.integers(0, 24))) + rng.bytes(size - 4)
            try:
                connection.sendall(frame)
            except ConnectionError:
                break  # the session has ended over an earlier one
        connection.close()
    native_agent.works()


def test_whoever_says_nothing_takes_no_turn(native_agent: Agent):
    """Many connections that never say what they want, and more than are kept."""
    silent = [native_agent.socket() for _ in range(100)]
    half = [native_agent.socket(hello()[:6]) for _ in range(20)]
    native_agent.works()
    assert native_agent.descriptors() < 80
    assert sum(is_closed(one) for one in silent[:60]) == 60
    for one in half:
        one.close()


def test_a_half_open_connection_is_closed_after_the_deadline(native_agent: Agent):
    assert is_closed(native_agent.socket(hello()[:6]))


def test_a_client_that_never_reads_does_not_hold_up_others(native: Program, tmp_path: Path):
    with running(native, tmp_path / "agent", "--session-timeout-s", "2") as agent:
        connection = agent.socket(hello())
        receive(connection, 8 + len("server:"))
        for _ in range(50):
            connection.sendall(struct.pack("<Q", 0) * 1000)
        agent.works()
        assert agent.status()["sessions"][0]["end"] == "time-limit"


# With a key


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(b"  " + KEY + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture(params=["native", pytest.param("emulated", marks=pytest.mark.arm)])
def guarded(request, programs, tmp_path: Path, key_file: Path):
    options = ("--auth-key-file", str(key_file))
    with running(programs(request.param), tmp_path / "agent", *options) as started:
        yield started


def proof(key: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.new(key, role + nonces, hashlib.sha256).digest()


def knock(agent: Agent, key: bytes, own_key: bytes | None = None) -> socket.socket:
    """Authenticate by `key`; the agent has to prove that it knows `own_key`."""
    connection = agent.socket()
    nonce = os.urandom(32)
    connection.sendall(b"TVMMNA01" + nonce)
    answer = receive(connection, 72)
    assert answer[:8] == b"TVMMNA01"
    nonces = nonce + answer[8:40]
    assert (answer[40:] == proof(KEY, b"server", nonces)) == (own_key in (None, KEY))
    connection.sendall(proof(key, b"client", nonces))
    return connection


def test_the_right_key_opens_a_session_and_the_status(guarded: Agent):
    connection = knock(guarded, KEY)
    assert receive(connection, 1) == b"\0"
    connection.sendall(hello())
    assert receive(connection, 8 + len("server:"))[8:] == b"server:"
    asking = knock(guarded, KEY)
    assert receive(asking, 1) == b"\0"
    asking.sendall(b"TVMMNQ01")
    (size,) = struct.unpack("<I", receive(asking, 4))
    assert b'"state":"busy"' in receive(asking, size)


def test_a_wrong_key_is_closed(guarded: Agent):
    for key in (b"", KEY[:-1], KEY + b"x", b"x" * 100):
        assert is_closed(knock(guarded, key))
    assert receive(knock(guarded, KEY), 1) == b"\0"


@pytest.mark.parametrize("first", [hello(), b"TVMMNQ01", b"TVMMNA00" + bytes(32), b"TVMM" * 20])
def test_without_the_preface_nothing_is_answered(guarded: Agent, first: bytes):
    assert is_closed(guarded.socket(first))
    assert not list(guarded.workdir.glob("*/*")), "a session was begun for a stranger"


def test_a_recorded_proof_is_worth_nothing(guarded: Agent):
    nonce = os.urandom(32)
    answers = []
    for _ in range(2):
        connection = guarded.socket(b"TVMMNA01" + nonce)
        answers.append(receive(connection, 72)[8:40])
    assert answers[0] != answers[1]
    connection.sendall(proof(KEY, b"client", nonce + answers[0]))
    assert is_closed(connection)


def test_the_agents_proof_is_not_the_clients(guarded: Agent):
    """Reflecting what the agent has sent opens nothing."""
    connection = guarded.socket(b"TVMMNA01" + bytes(32))
    connection.sendall(receive(connection, 72)[40:])
    assert is_closed(connection)


# The command line


def refusal(program: Program, *options: str) -> str:
    result = subprocess.run(
        [*program.command, "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("agent: ") or "unrecognized option" in lines[0]
    return result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "asks for --auth-key-file"),
        (("--host", "::"), "asks for --auth-key-file"),
        (("--host", "no.such.host.invalid"), "no address of this machine"),
        (("--port", "70000"), "give a number from 0 to 65535"),
        (("--port", "1e3"), "give a number from 0 to 65535"),
        (("--tracker", "nowhere", "--key", "k"), "give HOST:PORT"),
        (("--tracker", "127.0.0.1:9190"), "needs --key NAME"),
        (("--key", "a b"), "give 1 to 64 letters"),
        (("--session-timeout-s", "0"), "give 1 to 604800 seconds"),
        (("--memory-limit-mib", "1"), "give 64 MiB or more"),
        (("more",), "there are only options"),
        (("--no-such",), "see agent --help"),
    ],
)
def test_wrong_options_end_with_2_and_say_what_is_wrong(native: Program, options, message):
    assert message in refusal(native, *options)


def test_a_key_file_that_others_may_read_is_refused(native: Program, key_file: Path):
    key_file.chmod(0o640)
    assert "run chmod 600" in refusal(native, "--auth-key-file", str(key_file))
    key_file.chmod(0o600)
    key_file.write_bytes(b"short\n" + b" " * 100)
    assert "holds 5 bytes; write 16 to" in refusal(native, "--auth-key-file", str(key_file))
    assert "cannot be read" in refusal(native, "--auth-key-file", str(key_file) + "x")


def test_a_key_lets_it_listen_elsewhere(native: Program, tmp_path: Path, key_file: Path):
    options = ("--host", "127.0.0.2", "--auth-key-file", str(key_file))
    with running(native, tmp_path / "agent", *options) as agent:
        connection = socket.create_connection(("127.0.0.2", agent.port), timeout=10)
        agent.opened.append(connection)
        connection.sendall(hello())
        assert is_closed(connection)


def test_a_port_that_is_taken(native_agent: Agent):
    result = subprocess.run(
        [*native_agent.program.command, "--port", str(native_agent.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "Address already in use; choose another --host or --port" in result.stderr
