"""Asking a tracker: who is there, and for a board."""

from __future__ import annotations

import getpass
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm_mobilenet.errors import DeviceError, DeviceTimeoutError, DeviceUnreachableError
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.auth import authenticate
from tvm_mobilenet.rpc.deadline import Deadline, Line, Timeouts
from tvm_mobilenet.rpc.protocol import TRACKER_MAGIC, TrackerCode, receive_json, send_json

__all__ = [
    "Grant",
    "RegisteredBoard",
    "TrackerState",
    "WaitingUser",
    "request_board",
    "tracker_state",
    "user_name",
]

_LOOK_S = 2.0
"""Between two looks at who holds the board that one waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredBoard:
    """A board as its tracker knows it."""

    key: str
    address: Address
    state: str
    """`free`, `busy`, or `unknown` where the tracker is TVM's own, which keeps no such books."""
    since: float | None
    """When it became so, in seconds since 1970."""
    holder: str | None
    """Who was given the board."""
    has_agent: bool
    """False for a stock RPC server."""
    facts: BoardFacts | None
    """What it said of itself when it registered."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "key": self.key,
            "address": str(self.address),
            "state": self.state,
            "since": self.since,
            "holder": self.holder,
            "has_agent": self.has_agent,
            "facts": self.facts.to_dict() if self.facts else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingUser:
    """Somebody who waits for a board."""

    key: str
    user: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerState:
    """What a tracker knows."""

    boards: tuple[RegisteredBoard, ...]
    waiting: tuple[WaitingUser, ...]
    free: dict[str, int]
    """Free boards by key."""
    version: str | None
    """Of this package that runs the tracker; None for TVM's own."""

    def say_holders(self, key: str) -> str:
        """Say in a few words why no board of that key is free."""
        boards = [board for board in self.boards if board.key == key]
        if not boards:
            known = ", ".join(sorted({board.key for board in self.boards})) or "none at all"
            return f"no board is registered under {key!r} (registered: {known})"
        held = [board for board in boards if board.state != "free"]
        if not held:
            return f"a board of {key!r} is free"
        if all(board.state == "unknown" for board in held):
            return f"{len(held)} registered under {key!r}, {self.free.get(key, 0)} free"
        names = "; ".join(
            f"{board.address} is held by {board.holder or 'nobody known'}"
            + (f" for {max(0.0, time.time() - board.since):.0f} s" if board.since else "")
            for board in held[:3]
        )
        return names + (f"; and {len(held) - 3} more" if len(held) > 3 else "")


@dataclass(frozen=True, slots=True)
class Grant:
    """A board that the tracker has given to us, and what opens it."""

    address: Address
    match_key: str


def user_name() -> str:
    """Return how others see who holds a board: user, machine and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def _open(tracker: Address, auth_key: bytes | None, timeouts: Timeouts) -> Line:
    deadline = Deadline(timeouts.connect_s)
    name = f"tracker {tracker}"
    try:
        line = Line(tracker, name, deadline)
        try:
            if auth_key is not None:
                authenticate(line, auth_key, deadline)
            line.send(struct.pack("<i", TRACKER_MAGIC), "tracker", deadline)
            (magic,) = struct.unpack("<i", line.receive(4, "tracker", deadline))
        except BaseException:
            line.close()
            raise
    except DeviceUnreachableError as err:
        if err.step == "tracker" and auth_key is None:
            raise DeviceUnreachableError(
                f"{tracker} hung up: it is no tracker, or was started with --auth-key-file; give "
                "that file here too",
                device=name,
                step="tracker",
            ) from err
        raise
    if magic != TRACKER_MAGIC:
        line.close()
        raise DeviceUnreachableError(
            f"{tracker} is no tracker; give the address that `tvm-mobilenet tracker` printed",
            device=name,
            step="tracker",
        )
    return line


def tracker_state(
    tracker: Address, *, auth_key: bytes | None = None, timeouts: Timeouts | None = None
) -> TrackerState:
    """Ask a tracker, ours or TVM's, for all it knows.

    Raises:
        DeviceError: it cannot be reached, is none, or asks for a key.
    """
    timeouts = timeouts or Timeouts()
    with _open(tracker, auth_key, timeouts) as line:
        deadline = Deadline(timeouts.connect_s)
        send_json(line, [TrackerCode.SUMMARY], "tracker", deadline)
        answer = receive_json(line, "tracker", deadline)
    try:
        return _state_of(answer[1])
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as err:
        raise DeviceUnreachableError(
            f"{tracker} gives a summary that cannot be read; is it a tracker of TVM 0.27's kind?",
            device=f"tracker {tracker}",
            step="tracker",
        ) from err


def _state_of(summary: dict[str, Any]) -> TrackerState:
    free = {str(key): int(counts["free"]) for key, counts in summary["queue_info"].items()}
    if "boards" in summary:
        boards = tuple(
            RegisteredBoard(
                key=str(one["key"]),
                address=Address(str(one["host"]), int(one["port"])),
                state=str(one["state"]),
                since=one["since"],
                holder=one["holder"],
                has_agent=one["agent"] is not None,
                facts=BoardFacts.of(one["facts"]) if one["facts"] else None,
            )
            for one in summary["boards"]
        )
    else:
        boards = tuple(
            RegisteredBoard(
                key=str(one["key"]).partition(":")[2],
                address=Address(str(one["addr"][0]), int(one["addr"][1])),
                state="unknown",
                since=None,
                holder=None,
                has_agent="agent" in one,
                facts=BoardFacts.of(one["facts"]) if isinstance(one.get("facts"), dict) else None,
            )
            for one in summary["server_info"]
        )
    waiting = tuple(
        WaitingUser(key=str(one["key"]), user=str(one["user"]), since=float(one["since"]))
        for one in summary.get("waiting", ())
    )
    version = summary.get("tracker", {}).get("version")
    return TrackerState(boards=boards, waiting=waiting, free=free, version=version)


def request_board(
    tracker: Address,
    key: str,
    deadline: Deadline,
    *,
    auth_key: bytes | None = None,
    timeouts: Timeouts | None = None,
    priority: int = 1,
    notify: Callable[[str], None] | None = None,
) -> Grant:
    """Wait for a board of that key, in turn with others.

    Args:
        tracker: where to ask.
        key: the kind of board.
        deadline: until when to wait.
        auth_key: the tracker's.
        timeouts: for reaching the tracker.
        priority: higher is served first.
        notify: told now and then who holds the board meanwhile.

    Raises:
        DeviceTimeoutError: none became free in time; the message says who held it.
        DeviceError: the tracker cannot be reached, or has gone.
    """
    timeouts = timeouts or Timeouts()
    name = f"{key}@{tracker}"

    def look() -> str:
        try:
            state = tracker_state(tracker, auth_key=auth_key, timeouts=timeouts)
        except DeviceError as err:
            return f"who holds it is not known ({err})"
        return state.say_holders(key)

    with _open(tracker, auth_key, timeouts) as line:
        message = [TrackerCode.REQUEST, key, user_name(), priority]
        send_json(line, message, "queue", Deadline(timeouts.connect_s))
        while not select.select([line.socket], [], [], min(_LOOK_S, deadline.left_s))[0]:
            found = look()
            if deadline.is_past:
                raise DeviceTimeoutError(
                    f"no board became free within {deadline.seconds:g} s: {found}; wait for it, "
                    "register another, or raise --timeout-s",
                    device=name,
                    step="queue",
                )
            if notify is not None:
                notify(found)
        answer = receive_json(line, "queue", Deadline(timeouts.connect_s))
    try:
        code, (host, port, match_key) = answer
        if code == TrackerCode.SUCCESS:
            return Grant(Address(str(host), int(port)), str(match_key))
    except (TypeError, ValueError):
        pass
    raise DeviceUnreachableError(
        "the tracker's answer cannot be read; is it a tracker of TVM 0.27's kind?",
        device=name,
        step="queue",
    )
