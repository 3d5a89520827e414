"""The relay: one client, one board, and an end to every wait."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tvm_mobilenet.rpc.protocol import RPC_MAGIC, hello
from tvm_mobilenet.rpc.relay import End, Relay

LONG_S = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A board, seen from both ends of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.settimeout(LONG_S)
    yield ours, theirs
    ours.close()
    theirs.close()


def client_of(relay: Relay, token: str | None = None) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", relay.port), timeout=LONG_S)
    client.sendall(hello(RPC_MAGIC, f"client:{token or relay.token}"))
    return client


def receive(one: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = one.recv(count - len(data))
        assert chunk, "hung up"
        data += chunk
    return data


def welcomed(relay: Relay) -> socket.socket:
    client = client_of(relay)
    assert receive(client, 4 + 4 + 9) == struct.pack("<ii", RPC_MAGIC, 9) + b"server:pi"
    return client


@pytest.fixture
def relay(pair) -> Iterator[Relay]:
    found = Relay(pair[0], "server:pi", LONG_S)
    yield found
    found.close()


def test_bytes_go_both_ways_whole_and_in_order(relay: Relay, pair):
    client, board = welcomed(relay), pair[1]
    there = bytes(range(256)) * 8000
    client.setblocking(True)
    sent = memoryview(there)
    received = b""
    # More than all buffers hold: nothing may wait for the whole.
    client.settimeout(0.05)
    while len(received) < len(there):
        try:
            if sent:
                sent = sent[client.send(sent) :]
        except TimeoutError:
            pass
        received += board.recv(1 << 16)
    assert received == there
    board.sendall(b"back")
    client.settimeout(LONG_S)
    assert receive(client, 4) == b"back"
    assert relay.failure is None
    client.close()


def test_the_board_sees_the_client_leave(relay: Relay, pair):
    client = welcomed(relay)
    client.sendall(b"farewell")
    client.close()
    assert receive(pair[1], 8) == b"farewell"
    assert pair[1].recv(1) == b""


def test_closing_ends_both_sides_and_the_process(pair):
    relay = Relay(pair[0], "server:pi", LONG_S)
    client = welcomed(relay)
    relay.close()
    assert pair[1].recv(1) == b""
    assert client.recv(1) == b""
    assert relay._process.returncode == 0
    client.close()


@pytest.mark.parametrize("token", ["", "0" * 32, "x" * 4000], ids=["empty", "wrong", "long"])
def test_only_who_shows_the_token_is_let_in(relay: Relay, pair, token: str):
    stranger = client_of(relay, token or " ")
    stranger.sendall(b"padding of a kind" * 4)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    stranger.close()
    client = welcomed(relay)
    client.sendall(b"ours")
    assert receive(pair[1], 4) == b"ours"
    client.close()


def test_strangers_that_say_nothing_keep_nobody_out(relay: Relay, pair):
    strangers = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(20)]
    client = welcomed(relay)
    client.sendall(b"ours")
    assert receive(pair[1], 4) == b"ours"
    for one in [*strangers, client]:
        one.close()


def test_a_deadline_hangs_up_on_the_client_and_says_the_step(relay: Relay, pair):
    client = welcomed(relay)
    with relay.limit("run", 0.2):
        client.sendall(b"a request")
        assert client.recv(1) == b""
    failure = relay.failure
    assert failure is not None
    assert (failure.end, failure.step, failure.seconds) == (End.TIMEOUT, "run", 0.2)
    assert receive(pair[1], 9) == b"a request"
    assert pair[1].recv(1) == b""
    client.sendall(b"words that free what it held")  # taken and dropped, not refused
    client.close()


def test_a_deadline_also_ends_an_upload_that_nobody_takes(relay: Relay, pair):
    client = welcomed(relay)
    client.settimeout(0.05)
    with relay.limit("upload", 0.5):
        sent = 0
        while sent < 64 << 20:
            try:
                sent += client.send(bytes(1 << 16))
            except TimeoutError:
                if relay.failure is not None:
                    break
    assert sent == 64 << 20 or relay.failure is not None
    client.settimeout(LONG_S)
    assert client.recv(1) == b""
    assert relay.failure is not None
    assert relay.failure.step == "upload"
    client.close()


def test_a_limit_that_was_kept_is_forgotten(relay: Relay, pair):
    client = welcomed(relay)
    with relay.limit("run", 0.3):
        client.sendall(b"ask")
        assert receive(pair[1], 3) == b"ask"
        pair[1].sendall(b"answer")
        assert receive(client, 6) == b"answer"
    client.settimeout(0.8)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert relay.failure is None
    client.close()


def test_an_answer_that_never_comes_ends_even_without_a_limit(pair):
    relay = Relay(pair[0], "server:pi", 0.3)
    client = welcomed(relay)
    client.sendall(b"free this")
    assert client.recv(1) == b""
    assert relay.failure is not None
    assert relay.failure.end is End.TIMEOUT
    relay.close()
    client.close()


def test_what_the_board_said_last_still_arrives(relay: Relay, pair):
    client = welcomed(relay)
    client.sendall(b"unread, so that the board's end resets the connection" * 1000)
    receive(pair[1], 10)
    last = b"session ended by SIGSEGV"
    pair[1].sendall(last)
    assert receive(client, len(last)) == last
    pair[1].close()
    assert client.recv(1) == b""
    assert relay.failure is not None
    assert relay.failure.end is End.BOARD
    client.close()


def test_a_relay_that_is_killed_is_noticed(relay: Relay, pair):
    client = welcomed(relay)
    relay._process.kill()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    failure = relay.await_failure(LONG_S)
    assert failure is not None
    assert failure.end is End.HERE
    assert pair[1].recv(1) == b""
    client.close()
