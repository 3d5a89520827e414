"""The agent and trackers: TVM's own, and one that asks for a key."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boards.agents import (
    KINDS,
    Agent,
    Program,
    StockTracker,
    bounded,
    eventually,
    hello,
    receive,
    running,
)

KEY = b"correct horse battery staple"


@pytest.fixture(params=KINDS)
def lent(request, programs, tmp_path: Path, stock_tracker) -> Iterator[tuple[Agent, StockTracker]]:
    """An agent that TVM's own tracker lends as `board`."""
    tracker = stock_tracker()
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--key", "board")
    with running(programs(request.param), tmp_path / "agent", *options) as agent:
        eventually(lambda: tracker.free("board") == 1, "registration")
        yield agent, tracker


def borrow(tracker: StockTracker) -> Any:
    return bounded(lambda: tracker.client().request("board", session_timeout=30))


def test_it_is_lent_and_comes_back(lent: tuple[Agent, StockTracker]):
    agent, tracker = lent
    for _ in range(5):
        session = borrow(tracker)
        bounded(lambda s=session: s.upload(bytearray(b"x"), "x"))  # type: ignore[misc]
        assert tracker.free("board") == 0
        assert agent.status()["state"] == "busy"
        del session
        eventually(lambda: tracker.free("board") == 1, "back in the tracker")
    assert [s["end"] for s in agent.status()["sessions"]] == ["closed"] * 5


def test_the_tracker_knows_what_board_it_is(lent: tuple[Agent, StockTracker]):
    agent, tracker = lent
    (info,) = tracker.summary()["server_info"]
    assert info["key"] == "server:board"
    assert info["addr"] == ["127.0.0.1", agent.port]
    assert info["agent"] == 1
    assert info["facts"]["tvm"] == "0.27.0.post1"
    assert "server:board" in tracker.client().text_summary()


def test_a_crash_brings_it_back_too(lent: tuple[Agent, StockTracker], record_property):
    from tvm.error import RPCError

    agent, tracker = lent
    session = borrow(tracker)
    content = bytearray(agent.program.faulty.read_bytes())
    bounded(lambda: session.upload(content, "f.so"))
    module = bounded(lambda: session.load_module("f.so"))
    with pytest.raises(RPCError, match="board: session ended by SIGSEGV"):
        bounded(lambda: module["crash"]())
    eventually(lambda: tracker.free("board") == 1, "back in the tracker")
    assert bounded(lambda: borrow(tracker).listdir("")) == ""


def test_the_tracker_is_killed_and_started_again(lent: tuple[Agent, StockTracker], stock_tracker):
    agent, tracker = lent
    session = borrow(tracker)
    tracker.stop()
    # The session that runs is none of the tracker's business.
    assert bounded(lambda: session.listdir("")) == ""
    another = stock_tracker(tracker.port)
    eventually(lambda: another.summary()["server_info"], "known to the new tracker")
    assert another.free("board") == 0
    session = None
    eventually(lambda: another.free("board") == 1, "back in the tracker")
    assert bounded(lambda: borrow(another).listdir("")) == ""
    assert agent.process.poll() is None


def test_a_client_that_was_told_and_does_not_come(lent: tuple[Agent, StockTracker]):
    _, tracker = lent
    with socket.create_connection(("127.0.0.1", tracker.port), timeout=10) as connection:
        connection.sendall(struct.pack("<i", 0x2F271))
        receive(connection, 4)
        request = json.dumps([4, "board", "", 1]).encode()
        connection.sendall(struct.pack("<i", len(request)) + request)
        (size,) = struct.unpack("<i", receive(connection, 4))
        assert json.loads(receive(connection, size))[0] == 0
    assert tracker.free("board") == 0
    eventually(lambda: tracker.free("board") == 1, "offered again")


def test_a_match_key_is_good_for_one_session(lent: tuple[Agent, StockTracker]):
    agent, tracker = lent
    with socket.create_connection(("127.0.0.1", tracker.port), timeout=10) as connection:
        connection.sendall(struct.pack("<i", 0x2F271))
        receive(connection, 4)
        request = json.dumps([4, "board", "", 1]).encode()
        connection.sendall(struct.pack("<i", len(request)) + request)
        (size,) = struct.unpack("<i", receive(connection, 4))
        match_key = json.loads(receive(connection, size))[1][2]
    first = agent.socket(hello(f"client:{match_key}"))
    assert receive(first, 8 + len("server:board"))[:4] == struct.pack("<i", 0xFF271)
    second = agent.socket(hello(f"client:{match_key}"))
    assert receive(second, 4) == struct.pack("<i", 0xFF271 + 2)


def test_who_comes_directly_and_who_is_lent_it_take_turns(lent: tuple[Agent, StockTracker]):
    agent, tracker = lent
    direct = agent.socket(hello("client:board -user=ada"))
    receive(direct, 8 + len("server:board"))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(tracker.client().request("board")))
    thread.start()
    eventually(lambda: agent.status()["queue"] == 1, "waiting its turn")
    direct.close()
    thread.join(60)
    assert found[0].listdir("") == ""


# A tracker that asks for a key, and ones that misbehave


class ScriptedTracker:
    """Listens, and handles each connection by the next script."""

    def __init__(self, *scripts: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(60)
        self.port = self._listener.getsockname()[1]
        self.handled = 0
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(scripts,), daemon=True)
        self._thread.start()

    def _run(self, scripts: tuple[Callable[[socket.socket], None], ...]) -> None:
        try:
            for script in scripts:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(60)
                    with contextlib.suppress(ConnectionError):
                        script(connection)
                self.handled += 1
        except BaseException as err:
            self.errors.append(err)

    def finish(self) -> None:
        self._thread.join(60)
        self._listener.close()
        assert not self.errors, self.errors
        assert not self._thread.is_alive()


def register(connection: socket.socket) -> list[Any]:
    """Take a registration as a tracker does; return the two requests."""
    assert receive(connection, 4) == struct.pack("<i", 0x2F271)
    connection.sendall(struct.pack("<i", 0x2F271))
    requests = []
    for _ in range(2):
        (size,) = struct.unpack("<i", receive(connection, 4))
        requests.append(json.loads(receive(connection, size)))
        connection.sendall(struct.pack("<i", 1) + b"0")
    assert [request[0] for request in requests] == [5, 3]
    return requests


def registers(connection: socket.socket) -> None:
    register(connection)


def closes(connection: socket.socket) -> None:
    receive(connection, 4)


def sends_garbage(connection: socket.socket) -> None:
    receive(connection, 4)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.recv(1)


def announces_too_much(connection: socket.socket) -> None:
    assert receive(connection, 4) == struct.pack("<i", 0x2F271)
    connection.sendall(struct.pack("<i", 0x2F271))
    receive(connection, 4)
    connection.sendall(struct.pack("<i", (1 << 31) - 1))
    while connection.recv(4096):
        pass


def test_a_tracker_that_misbehaves_is_tried_again(native: Program, tmp_path: Path):
    tracker = ScriptedTracker(closes, sends_garbage, announces_too_much, registers)
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--key", "board")
    with running(native, tmp_path / "agent", *options, "--advertise", "board.example") as agent:
        tracker.finish()
        assert tracker.handled == 4
        assert bounded(lambda: agent.connect("board").listdir("")) == ""


def test_the_advertised_address_goes_to_the_tracker(native: Program, tmp_path: Path):
    requests: list[Any] = []
    tracker = ScriptedTracker(lambda connection: requests.extend(register(connection)))
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--key", "board")
    with running(native, tmp_path / "agent", *options, "--advertise", "board.example") as agent:
        tracker.finish()
        info, put = requests
        assert info[1]["addr"] == ["board.example", agent.port]
        assert put[1:3] == ["board", [agent.port, put[2][1]]]
        assert put[3] == "board.example"
        assert put[2][1].startswith("board:")
        assert len(put[2][1]) == len("board:") + 32


def guarded(key: bytes, log: list[Any]) -> Callable[[socket.socket], None]:
    """Return the script of a tracker that asks for `key`."""

    def script(connection: socket.socket) -> None:
        first = receive(connection, 40)
        assert first[:8] == b"TVMMNA01"
        nonces = first[8:] + os.urandom(32)
        server = hmac.new(key, b"server" + nonces, hashlib.sha256).digest()
        connection.sendall(b"TVMMNA01" + nonces[32:] + server)
        got = connection.recv(32)
        expected = hmac.new(key, b"client" + nonces, hashlib.sha256).digest()
        log.append(got == expected)
        if got == expected:
            connection.sendall(b"\0")
            register(connection)

    return script


def test_a_tracker_has_to_know_the_key(native: Program, tmp_path: Path):
    key_file = tmp_path / "key"
    key_file.write_bytes(KEY)
    key_file.chmod(0o600)
    log: list[Any] = []
    tracker = ScriptedTracker(guarded(b"another key altogether", log), guarded(KEY, log))
    options = ["--tracker", f"127.0.0.1:{tracker.port}", "--key", "board"]
    options += ["--auth-key-file", str(key_file)]
    with running(native, tmp_path / "agent", *options) as agent:
        tracker.finish()
        assert log == [False, True], "it proved its key to a tracker that does not know it"
        assert "does not know our key" in agent.log.read_text()
