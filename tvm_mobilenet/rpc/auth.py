"""The preface by which two sides prove that they hold the same key, before anything else is said.

    peer    -> server   b"TVMMNA01" + 32 random bytes (c)
    server  -> peer     b"TVMMNA01" + 32 random bytes (s) + HMAC(key, "server" + c + s)
    peer    -> server   HMAC(key, "client" + c + s)
    server  -> peer     one byte 0, or the connection closes

The key itself never travels. What follows is neither encrypted nor signed: whoever can change
packets on the way can take over a connection once it is open. Over a network that is not trusted,
use ssh.
"""

from __future__ import annotations

import hmac
import secrets
import stat
from pathlib import Path

from tvm_mobilenet.errors import DeviceUnreachableError, UsageError
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.deadline import Deadline, Line

__all__ = [
    "MAC_BYTES",
    "NONCE_BYTES",
    "PREFACE",
    "WELCOME",
    "authenticate",
    "client_mac",
    "read_key_file",
    "require_key",
    "server_mac",
]

PREFACE = b"TVMMNA01"
WELCOME = b"\0"
NONCE_BYTES = 32
MAC_BYTES = 32
_LEAST_KEY_BYTES = 16
_MOST_KEY_BYTES = 4096


def read_key_file(path: Path | str) -> bytes:
    """Return the key in a file: its bytes without the white space around them.

    Raises:
        UsageError: no such file, others may read it, or the key is too short.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()[: _MOST_KEY_BYTES + 1] if stat.S_ISREG(mode) else b""
    except OSError as err:
        raise UsageError(f"auth-key-file {path}: {(err.strerror or str(err)).lower()}") from err
    if not stat.S_ISREG(mode):
        raise UsageError(f"auth-key-file {path}: it is no file; give a file that holds the key")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"auth-key-file {path}: others than its owner may use it (mode "
            f"{stat.S_IMODE(mode):04o}); run `chmod 600 {path}`"
        )
    key = content.strip()
    if not _LEAST_KEY_BYTES <= len(key) <= _MOST_KEY_BYTES:
        raise UsageError(
            f"auth-key-file {path}: the key has {len(key)} bytes; give {_LEAST_KEY_BYTES} to "
            f"{_MOST_KEY_BYTES}, as `openssl rand -hex 32` makes them"
        )
    return key


def require_key(address: Address, key: bytes | None) -> None:
    """Refuse to listen where others can reach it without a key.

    Raises:
        UsageError: the address is not this machine's own and there is no key.
    """
    if key is None and not address.is_loopback:
        raise UsageError(
            f"host {address.host}: others can reach it, and no --auth-key-file was given; "
            "give one, or listen on 127.0.0.1 and reach it through ssh"
        )


def server_mac(key: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return what proves that the server holds the key."""
    return _mac(key, b"server", client_nonce, server_nonce)


def client_mac(key: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return what proves that the peer holds the key."""
    return _mac(key, b"client", client_nonce, server_nonce)


def _mac(key: bytes, side: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    return hmac.digest(key, side + client_nonce + server_nonce, "sha256")


def authenticate(line: Line, key: bytes, deadline: Deadline) -> None:
    """Go through the preface as the peer.

    Raises:
        DeviceUnreachableError: the other side has no key, or another one.
    """
    step = "authenticate"
    client_nonce = secrets.token_bytes(NONCE_BYTES)
    try:
        line.send(PREFACE + client_nonce, step, deadline)
        head = line.receive(len(PREFACE), step, deadline)
        server_nonce = line.receive(NONCE_BYTES, step, deadline)
        proof = line.receive(MAC_BYTES, step, deadline)
    except DeviceUnreachableError as err:
        raise _refused(line, "it hung up: it is run without a key, or is no such server") from err
    expected = server_mac(key, client_nonce, server_nonce)
    if head != PREFACE or not hmac.compare_digest(proof, expected):
        raise _refused(line, "it does not hold this key")
    try:
        line.send(client_mac(key, client_nonce, server_nonce), step, deadline)
        answer = line.receive(len(WELCOME), step, deadline)
    except DeviceUnreachableError as err:
        raise _refused(line, "it refused this key") from err
    if answer != WELCOME:
        raise _refused(line, "it refused this key")


def _refused(line: Line, found: str) -> DeviceUnreachableError:
    return DeviceUnreachableError(
        f"{line.address}: {found}; give --auth-key-file the file that it was started with",
        device=line.device,
        step="authenticate",
    )
