"""One session on one board: reached, held, and every call of it bounded."""

from __future__ import annotations

import logging
import re
import secrets
import select
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tvm_mobilenet.errors import (
    DeviceError,
    DeviceTimeoutError,
    DeviceUnreachableError,
    SessionEndedError,
    TvmMobilenetError,
)
from tvm_mobilenet.opencl.facts import OpenCLFacts
from tvm_mobilenet.opencl.runtime import DESCRIBE, device_error
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.auth import authenticate
from tvm_mobilenet.rpc.deadline import Deadline, Line, Timeouts
from tvm_mobilenet.rpc.protocol import RPC_MAGIC, RPC_MISMATCH, hello
from tvm_mobilenet.rpc.relay import End, Failure, Relay
from tvm_mobilenet.rpc.status import agent_status
from tvm_mobilenet.rpc.tracker_client import Grant, request_board, user_name

__all__ = ["BoardSession", "open_session"]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

_AGENT = "tvm_mobilenet.board."
_MOST_KEY_BYTES = 4096
_LOOK_S = 2.0
_GRANTS = 5
"""Boards that a tracker may offer before we believe that none of them is there."""
_FROM_BOARD = "Error caught from RPC call"
_SAY_S = 0.5
_ENDED = re.compile(r"board: (session ended.*)")
_TVM_LOCK = threading.Lock()
"""TVM keeps its sessions in a table of 32; entering one is not to meet another's leaving."""


class BoardSession:
    """A session that is open; close it, and the board is free for the next.

    Every call goes through `call`, which returns or raises within its seconds, whatever the board
    and the link do.
    """

    def __init__(
        self, line: Line, server_key: str, name: str, session_id: str, timeouts: Timeouts
    ) -> None:
        self.name = name
        self.address = line.address
        self.id = session_id
        self.timeouts = timeouts
        self.auth_key: bytes | None = None
        self._functions: dict[str, Any] = {}
        self._relay = Relay(line.socket, server_key, timeouts.step_s)
        try:
            self._remote = self.call("handshake", self._connect)
            self.has_agent = self.call("handshake", self._find, _AGENT + "facts") is not None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Any:
        import tvm.rpc
        from tvm.rpc import _ffi_api

        with _TVM_LOCK:
            module = _ffi_api.Connect("127.0.0.1", self._relay.port, self._relay.token, False)
            return tvm.rpc.RPCSession(module)

    @property
    def remote(self) -> Any:
        """TVM's own object for the session; use it inside `call` only."""
        return self._remote

    def call(
        self, step: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Run what talks to the board, for at most the seconds of a step.

        Args:
            step: what it is, for the error.
            function: what to run, with the arguments that follow.
            *args: passed on.
            **kwargs: passed on.

        Raises:
            DeviceTimeoutError: no answer in time, or the link is dead.
            DeviceUnreachableError: the board hung up and gave no reason.
            SessionEndedError: the board ended the session, and said why.
            DeviceError: the call failed there.
        """
        seconds = self.timeouts.step_s
        if self._relay.failure is not None:
            raise self._lost(step, self._relay.failure, "")
        with self._relay.limit(step, seconds):
            try:
                return function(*args, **kwargs)
            except TvmMobilenetError:
                raise
            except Exception as err:
                raise self._explain(step, str(err)) from err

    def function(self, name: str) -> Any:
        """Return the agent's function of that name, without its prefix.

        Raises:
            DeviceError: there is none: the board runs a stock server, or an older agent.
        """
        found = self.call("call", self._find, _AGENT + name)
        if found is None:
            raise DeviceError(
                f"the board has no {name}: it runs a stock RPC server or an older agent; run the "
                "board agent there (`tvm-mobilenet board bundle`)",
                device=self.name,
                step=name,
            )
        return found

    def opencl_facts(self) -> OpenCLFacts | None:
        """Ask which OpenCL devices the board has; None where it has no OpenCL runtime of ours."""
        describe = self.call("OpenCL", self._find, DESCRIBE)
        return OpenCLFacts.of_json(self.call("OpenCL", describe)) if describe else None

    def _find(self, name: str) -> Any:
        if name not in self._functions:
            try:
                self._functions[name] = self._remote.get_function(name)
            except AttributeError:  # what TVM raises for a name that is not there
                self._functions[name] = None
        return self._functions[name]

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the session's folder on the board."""
        data = bytearray(path.read_bytes())
        self.call("upload", self._remote.upload, data, name)

    def close(self) -> None:
        """Free the board."""
        self._functions.clear()
        self._relay.close()
        self._remote = None

    def _explain(self, step: str, message: str) -> DeviceError:
        """Find out why a call failed: the link, the board, or the call itself."""
        ended = _ENDED.search(message)
        if ended:
            return self._ended(step, " ".join(ended[1].split()))
        if "RPCSessionTimeoutError" in message:
            return self._ended(step, f"by its time limit ({_last_line(message)})")
        failure = self._relay.failure
        if failure is None and _FROM_BOARD not in message:
            failure = self._relay.await_failure(_SAY_S)
        if failure is not None:
            return self._lost(step, failure, message)
        opencl = device_error(Exception(message), device=self.name, step=step)
        if opencl is not None:
            return opencl
        return DeviceError(f"the board answers: {_last_line(message)}", device=self.name, step=step)

    def _ended(self, step: str, reason: str) -> SessionEndedError:
        reason = reason.removeprefix("session ended ").removeprefix("session ended: ")
        return SessionEndedError(
            f"the board ended the session: {reason}; it is free again, and its log says more",
            device=self.name,
            step=step,
        )

    def _lost(self, step: str, failure: Failure, message: str) -> DeviceError:
        logger.debug("%s: %s: %s: %s", self.name, step, failure, message)
        if failure.end is End.TIMEOUT:
            return DeviceTimeoutError(
                f"no answer within {failure.seconds:g} s; look at the link and the board, or raise "
                "--timeout-s",
                device=self.name,
                step=failure.step or step,
            )
        if failure.end is End.LINK:
            return DeviceTimeoutError(
                f"the link is dead ({failure.reason}): the board stopped answering; look at its "
                "power and network",
                device=self.name,
                step=step,
            )
        reason = self._reason_of_end()
        if reason is not None:
            return self._ended(step, reason)
        return DeviceUnreachableError(
            f"{self.address} hung up in the middle and says no reason; was the board, or what "
            "serves it, ended?",
            device=self.name,
            step=step,
        )

    def _reason_of_end(self) -> str | None:
        """Ask the agent what became of the session; None where it does not know."""
        if not getattr(self, "has_agent", False):
            return None
        for wait_s in (0.0, 0.2, 1.0):  # the agent may still be burying it
            time.sleep(wait_s)
            try:
                status = agent_status(
                    self.address, auth_key=self.auth_key, timeouts=self.timeouts, device=self.name
                )
            except DeviceError as err:
                logger.debug("%s: no status: %s", self.name, err)
                return None
            end = status.end_of(self.id)
            if end is not None:
                return f"{end.end}: {end.detail}" if end.detail else end.end
        return None


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("File ", "at ", "^"))]
    return (telling or lines or ["nothing"])[-1][-300:]


def open_session(
    *,
    address: Address | None = None,
    tracker: Address | None = None,
    key: str | None = None,
    auth_key: bytes | None = None,
    timeouts: Timeouts | None = None,
    notify: Callable[[str], None] | None = None,
) -> BoardSession:
    """Open a session with a board.

    Args:
        address: the board's, or None to have a tracker choose one.
        tracker: the tracker's.
        key: the kind of board to ask the tracker for; with `address`, the server's key.
        auth_key: of the board and the tracker.
        timeouts: how long each step may take.
        notify: told who holds the board while one waits.

    Raises:
        DeviceError: what is missing, at which step.
    """
    import tvm.rpc  # seconds, the first time: before others have to wait for the board

    del tvm
    timeouts = timeouts or Timeouts()
    deadline = Deadline(timeouts.queue_s)
    if address is not None:
        return _enter(address, key or "", str(address), deadline, auth_key, timeouts, notify)
    assert tracker is not None
    assert key is not None
    failure: DeviceError | None = None
    for _ in range(_GRANTS):
        grant: Grant = request_board(
            tracker, key, deadline, auth_key=auth_key, timeouts=timeouts, notify=notify
        )
        name = f"{key} ({grant.address})"
        try:
            return _enter(
                grant.address, grant.match_key, name, deadline, auth_key, timeouts, notify
            )
        except DeviceError as err:
            # It may just have gone: the tracker finds out in a moment. There may be another.
            logger.info("%s; asking for another board", err)
            failure = err
        if deadline.is_past:
            break
    assert failure is not None
    raise failure


def _enter(
    address: Address,
    key: str,
    name: str,
    deadline: Deadline,
    auth_key: bytes | None,
    timeouts: Timeouts,
    notify: Callable[[str], None] | None,
) -> BoardSession:
    session_id = secrets.token_hex(8)
    line = Line(address, name, Deadline(timeouts.connect_s))
    try:
        if auth_key is not None:
            authenticate(line, auth_key, Deadline(timeouts.connect_s))
        options = f"-timeout={timeouts.session_s:g} -session={session_id} -user={user_name()}"
        greeting = hello(RPC_MAGIC, f"client:{key} {options}")
        line.send(greeting, "handshake", Deadline(timeouts.connect_s))
        _await_turn(line, deadline, auth_key, timeouts, notify)
        server_key = _welcome(line, timeouts)
        session = BoardSession(line, server_key, name, session_id, timeouts)
    except BaseException:
        line.close()
        raise
    session.auth_key = auth_key
    return session


def _await_turn(
    line: Line,
    deadline: Deadline,
    auth_key: bytes | None,
    timeouts: Timeouts,
    notify: Callable[[str], None] | None,
) -> None:
    """Wait until the board answers: it serves one session after the other."""
    found = "it serves somebody else, or is stuck"
    is_agent = True
    while not select.select([line.socket], [], [], min(_LOOK_S, deadline.left_s))[0]:
        if is_agent:
            try:
                status = agent_status(
                    line.address, auth_key=auth_key, timeouts=timeouts, device=line.device
                )
                found = f"it is held by {status.holder or 'somebody'}, {status.queue} waiting"
            except DeviceError as err:
                # A stock server that serves somebody takes no question; asked again and again, its
                # short list of waiting connections would be full of them.
                logger.debug("%s: no status: %s", line.device, err)
                is_agent = False
        if deadline.is_past:
            raise DeviceTimeoutError(
                f"{line.address} did not begin a session within {deadline.seconds:g} s: {found}; "
                "wait for it, or raise --timeout-s",
                device=line.device,
                step="queue",
            )
        if notify is not None:
            notify(found)


def _welcome(line: Line, timeouts: Timeouts) -> str:
    """Read what the board answers to the greeting and return its key."""
    deadline = Deadline(timeouts.connect_s)
    (code,) = struct.unpack("<i", line.receive(4, "handshake", deadline))
    if code == RPC_MISMATCH:
        raise DeviceUnreachableError(
            f"{line.address} refuses the key: it is registered at a tracker (use --tracker and "
            "--key), or was started with a --key of its own (give it)",
            device=line.device,
            step="handshake",
        )
    if code != RPC_MAGIC:
        raise DeviceUnreachableError(
            f"{line.address} speaks no TVM RPC; is that the board's port?",
            device=line.device,
            step="handshake",
        )
    (size,) = struct.unpack("<i", line.receive(4, "handshake", deadline))
    if not 0 <= size <= _MOST_KEY_BYTES:
        raise DeviceUnreachableError(
            f"{line.address} names itself with {size} bytes; it speaks no TVM RPC",
            device=line.device,
            step="handshake",
        )
    return line.receive(size, "handshake", deadline).decode(errors="replace")
