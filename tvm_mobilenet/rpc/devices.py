"""What a tracker knows of its boards, and what each board says of itself right now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.opencl.facts import OpenCLFacts
from tvm_mobilenet.rpc.address import Address, parse_address
from tvm_mobilenet.rpc.auth import read_key_file
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.rpc.status import AgentStatus, agent_status
from tvm_mobilenet.rpc.tracker_client import (
    RegisteredBoard,
    TrackerState,
    WaitingUser,
    tracker_state,
)

__all__ = ["DeviceEntry", "DeviceList", "list_devices"]

_ASK_S = 3.0
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """One board: what its tracker says, and what it says itself."""

    board: RegisteredBoard
    status: AgentStatus | None
    """None for a stock RPC server, and for a board that does not answer."""
    problem: str | None
    """Why a board that runs our agent does not answer from here."""

    @property
    def facts(self) -> BoardFacts | None:
        """The newest that is known of the board."""
        return self.status.facts if self.status else self.board.facts

    @property
    def opencl(self) -> OpenCLFacts | None:
        """What its OpenCL runtime found; None where it has none, or does not say."""
        return self.status.opencl if self.status else None

    @property
    def holder(self) -> str | None:
        """Who uses it, by the tracker's books, or who came to the board directly."""
        return self.board.holder or (self.status.holder if self.status else None)

    @property
    def state(self) -> str:
        """`free`, `busy` or `unknown`: free only if nobody came to the board directly."""
        if self.board.state == "free" and self.status is not None and self.status.state == "busy":
            return "busy"
        return self.board.state

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            **self.board.to_dict(),
            "state": self.state,
            "holder": self.holder,
            "queue": self.status.queue if self.status else None,
            "facts": self.facts.to_dict() if self.facts else None,
            "opencl": self.opencl.to_dict() if self.opencl else None,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceList:
    """Everything at one tracker."""

    tracker: Address
    version: str | None
    """Of this package that runs the tracker; None for TVM's own."""
    devices: tuple[DeviceEntry, ...]
    waiting: tuple[WaitingUser, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "tracker": str(self.tracker),
            "version": self.version,
            "devices": [device.to_dict() for device in self.devices],
            "waiting": [
                {"key": one.key, "user": one.user, "since": one.since} for one in self.waiting
            ],
        }


def list_devices(
    tracker: str | Address,
    *,
    auth_key_file: Path | str | None = None,
    timeout_s: float | None = None,
) -> DeviceList:
    """List the boards at a tracker: free or busy, since when, held by whom, and how they are.

    Args:
        tracker: `HOST:PORT`.
        auth_key_file: holds the key that tracker and boards were started with.
        timeout_s: for the tracker; a board has three seconds of it at most.

    Raises:
        DeviceError: the tracker cannot be reached, or is none.
        UsageError: an address that is none, or a key file that cannot be used.
    """
    address = parse_address(tracker, "tracker")
    auth_key = read_key_file(auth_key_file) if auth_key_file is not None else None
    timeouts = Timeouts.of(timeout_s)
    state: TrackerState = tracker_state(address, auth_key=auth_key, timeouts=timeouts)
    brief = Timeouts(connect_s=min(_ASK_S, timeouts.connect_s))

    def ask(board: RegisteredBoard) -> DeviceEntry:
        if not board.has_agent:
            return DeviceEntry(board=board, status=None, problem=None)
        try:
            status = agent_status(board.address, auth_key=auth_key, timeouts=brief)
        except DeviceError as err:
            return DeviceEntry(board=board, status=None, problem=str(err))
        return DeviceEntry(board=board, status=status, problem=None)

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        devices = tuple(pool.map(ask, state.boards))
    return DeviceList(
        tracker=address, version=state.version, devices=devices, waiting=state.waiting
    )
