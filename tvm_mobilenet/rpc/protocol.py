"""The numbers of TVM's RPC protocol, and how a message of its tracker is spelled.

Reference: tvm/python/tvm/rpc/base.py and tvm/src/runtime/rpc/minrpc/rpc_reference.h, TVM 0.27.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any

from tvm_mobilenet.errors import DeviceUnreachableError
from tvm_mobilenet.rpc.deadline import Deadline, Line

__all__ = [
    "MAX_FRAME_BYTES",
    "RPC_MAGIC",
    "RPC_MISMATCH",
    "TRACKER_MAGIC",
    "TrackerCode",
    "frame",
    "hello",
    "receive_json",
    "send_json",
]

RPC_MAGIC = 0xFF271
"""A session's first word, and the server's word for `welcome`."""
RPC_MISMATCH = RPC_MAGIC + 2
"""The server's word for `no such key here`."""
TRACKER_MAGIC = 0x2F271
MAX_FRAME_BYTES = 1 << 20
"""A tracker's messages are short; TVM's own tracker has the same limit."""


class TrackerCode(enum.IntEnum):
    """What a message to the tracker asks for."""

    FAIL = -1
    SUCCESS = 0
    PING = 1
    STOP = 2
    PUT = 3
    REQUEST = 4
    UPDATE_INFO = 5
    SUMMARY = 6
    GET_PENDING_MATCHKEYS = 7


def hello(magic: int, key: str) -> bytes:
    """Return the first bytes of a session: a word, and a key with its length."""
    text = key.encode()
    return struct.pack("<ii", magic, len(text)) + text


def frame(value: Any) -> bytes:
    """Spell a message to or from a tracker."""
    text = json.dumps(value).encode()
    return struct.pack("<i", len(text)) + text


def send_json(line: Line, value: Any, step: str, deadline: Deadline) -> None:
    """Send one message to a tracker."""
    line.send(frame(value), step, deadline)


def receive_json(line: Line, step: str, deadline: Deadline) -> Any:
    """Receive one message of a tracker's.

    Raises:
        DeviceUnreachableError: what comes is no such message.
    """
    (size,) = struct.unpack("<i", line.receive(4, step, deadline))
    if not 0 < size <= MAX_FRAME_BYTES:
        raise _nonsense(line, step, f"a message of {size} bytes")
    try:
        return json.loads(line.receive(size, step, deadline))
    except ValueError as err:
        raise _nonsense(line, step, "what is no JSON") from err


def _nonsense(line: Line, step: str, found: str) -> DeviceUnreachableError:
    return DeviceUnreachableError(
        f"{line.address} sent {found}; is that a tracker?", device=line.device, step=step
    )
