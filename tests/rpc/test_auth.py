from __future__ import annotations

import hashlib
import hmac
import socket
import threading
from pathlib import Path

import pytest

from tvm_mobilenet.errors import DeviceUnreachableError, UsageError
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.auth import (
    PREFACE,
    authenticate,
    client_mac,
    read_key_file,
    require_key,
    server_mac,
)
from tvm_mobilenet.rpc.deadline import Deadline, Line

KEY = b"correct horse battery staple"


def test_a_key_is_the_file_without_the_space_around_it(key_file: Path):
    assert read_key_file(key_file) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_may_read_is_refused(key_file: Path, mode: int):
    key_file.chmod(mode)
    with pytest.raises(UsageError, match=r"others than its owner .*run `chmod 600"):
        read_key_file(key_file)


def test_a_short_key_is_refused(key_file: Path):
    key_file.write_text(" 123456789012345 \n")
    with pytest.raises(UsageError, match=r"the key has 15 bytes; give 16 to 4096"):
        read_key_file(key_file)


def test_a_key_file_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"auth-key-file .*: no such file"):
        read_key_file(tmp_path / "none")
    with pytest.raises(UsageError, match=r"it is no file"):
        read_key_file(tmp_path)


def test_listening_for_others_asks_for_a_key():
    with pytest.raises(UsageError, match=r"host 0\.0\.0\.0: others can reach it, and no --auth-"):
        require_key(Address("0.0.0.0", 1), None)
    require_key(Address("0.0.0.0", 1), KEY)
    require_key(Address("127.0.0.1", 1), None)


def test_the_two_sides_prove_different_things():
    nonces = b"c" * 32, b"s" * 32
    assert (
        client_mac(KEY, *nonces)
        == hmac.new(KEY, b"client" + nonces[0] + nonces[1], hashlib.sha256).digest()
    )
    assert server_mac(KEY, *nonces) != client_mac(KEY, *nonces)
    assert server_mac(KEY, *nonces) != server_mac(KEY, *nonces[::-1])


def _server(answer) -> tuple[Address, threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as peer:
            peer.settimeout(5)
            answer(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    return Address("127.0.0.1", listener.getsockname()[1]), thread


def _receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = peer.recv(count - len(data))
        assert chunk
        data += chunk
    return data


def _honest(key: bytes, verdict: bytes):
    def answer(peer: socket.socket) -> None:
        head = _receive(peer, 40)
        assert head.startswith(PREFACE)
        nonce = b"n" * 32
        peer.sendall(PREFACE + nonce + server_mac(key, head[8:], nonce))
        shown = peer.recv(32)
        if shown and hmac.compare_digest(shown, client_mac(key, head[8:], nonce)):
            peer.sendall(verdict)

    return answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda peer: None, "run without a key, or is no such server"),
        (_honest(b"another key of theirs", b"\0"), "it does not hold this key"),
        (_honest(KEY, b""), "it refused this key"),
        (_honest(KEY, b"\1"), "it refused this key"),
        (lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 4), "it does not hold this"),
    ],
    ids=["hangs up", "other key", "refuses", "wrong verdict", "other protocol"],
)
def test_a_server_that_does_not_hold_the_key_is_not_spoken_to(answer, says: str):
    address, thread = _server(answer)
    deadline = Deadline(5)
    with Line(address, "pi", deadline) as line:
        with pytest.raises(DeviceUnreachableError, match=says) as caught:
            authenticate(line, KEY, deadline)
        assert caught.value.step == "authenticate"
    thread.join(5)
    assert not thread.is_alive()


def test_the_right_key_is_welcome():
    address, thread = _server(_honest(KEY, b"\0"))
    deadline = Deadline(5)
    with Line(address, "pi", deadline) as line:
        authenticate(line, KEY, deadline)
    thread.join(5)
    assert not thread.is_alive()
