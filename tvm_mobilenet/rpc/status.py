"""Asking a board's agent how it is, without holding the board."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_mobilenet.errors import DeviceUnreachableError
from tvm_mobilenet.facts import BoardFacts
from tvm_mobilenet.opencl.facts import OpenCLFacts
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.auth import authenticate
from tvm_mobilenet.rpc.deadline import Deadline, Line, Timeouts

__all__ = ["AgentStatus", "SessionEnd", "agent_status"]

_QUERY = b"TVMMNQ01"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How one of a board's last sessions ended."""

    id: str
    user: str
    end: str
    """`closed`, `signal`, `time-limit`, `memory-limit`, `exit` or `killed`."""
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What an agent says of itself and of its board."""

    agent: str
    """The agent's version."""
    state: str
    """`free` or `busy`."""
    since: float | None
    """When it became so, by the board's own clock, in seconds since 1970."""
    holder: str | None
    """Who uses the board."""
    queue: int
    """How many wait at the board itself."""
    key: str | None
    """The key under which it registers."""
    sessions: tuple[SessionEnd, ...]
    """The last ones that ended."""
    facts: BoardFacts
    opencl: OpenCLFacts | None = None
    """Which OpenCL devices it has; None where it has no OpenCL runtime, or is still looking."""

    def end_of(self, session: str) -> SessionEnd | None:
        """Return how the session of that id ended, if it is still remembered."""
        return next((one for one in reversed(self.sessions) if one.id == session), None)


def agent_status(
    address: Address,
    *,
    auth_key: bytes | None = None,
    timeouts: Timeouts | None = None,
    device: str | None = None,
) -> AgentStatus:
    """Ask the agent at `address`.

    Raises:
        DeviceUnreachableError: nothing answers, or no agent: stock servers know no such query.
        DeviceTimeoutError: no answer in time.
    """
    name = device or str(address)
    deadline = Deadline((timeouts or Timeouts()).connect_s)
    with Line(address, name, deadline) as line:
        if auth_key is not None:
            authenticate(line, auth_key, deadline)
        line.send(_QUERY, "status", deadline)
        (size,) = struct.unpack("<I", line.receive(4, "status", deadline))
        if size > _MOST_BYTES:
            raise _no_agent(name, address)
        text = line.receive(size, "status", deadline)
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise _no_agent(name, address) from err


def _no_agent(name: str, address: Address) -> DeviceUnreachableError:
    return DeviceUnreachableError(
        f"{address} gives no status that can be read; is it a board agent of this version?",
        device=name,
        step="status",
    )


def _parse(content: Mapping[str, Any]) -> AgentStatus:
    return AgentStatus(
        agent=str(content["agent"]),
        state=str(content["state"]),
        since=content.get("since"),
        holder=content.get("holder"),
        queue=int(content.get("queue", 0)),
        key=content.get("key"),
        sessions=tuple(
            SessionEnd(
                str(one["id"]),
                str(one.get("user", "")),
                str(one["end"]),
                str(one.get("detail", "")),
                float(one.get("seconds", 0.0)),
            )
            for one in content.get("sessions", ())
        ),
        facts=BoardFacts.of(content.get("facts", {})),
        opencl=OpenCLFacts.of(content["opencl"]) if content.get("opencl") else None,
    )
