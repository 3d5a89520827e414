"""Between TVM's client, which waits for ever, and a board, which may have gone.

TVM's client is blocking C++ with no time-out. So it is never given the board's connection: it
connects to a relay on this machine, which passes bytes on, and hangs up on it when a deadline
passes. The call in progress then returns at once, with an error.

The relay is a process, not a thread: TVM frees remote objects whenever Python drops them, waits for
the board's answer, and holds Python's lock meanwhile. A thread could not relay that answer.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tvm_mobilenet.rpc import relay_worker
from tvm_mobilenet.rpc.address import LOOPBACK
from tvm_mobilenet.rpc.protocol import RPC_MAGIC, hello

__all__ = ["End", "Failure", "Relay"]

_END_S = 5.0


class End(Enum):
    """How a relayed connection came to its end."""

    TIMEOUT = relay_worker.TIMEOUT
    """A deadline passed."""
    LINK = relay_worker.LINK
    """The system gave up on the connection."""
    BOARD = relay_worker.BOARD
    """The board hung up."""
    HERE = relay_worker.HERE
    """It was closed, or the relay itself has gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why nothing is relayed any more."""

    end: End
    step: str | None = None
    """What was being done when a deadline passed."""
    seconds: float | None = None
    """How long that had."""
    reason: str = ""
    """The system's words, where it had any."""


class Relay:
    """Passes bytes between one client on this machine and a board.

    Args:
        board: the connection to the board, its opening done; taken over.
        server_key: what the board answered to that, for TVM's client.
        patience_s: how long a request may go unanswered where no `limit` says so: what the garbage
            collector frees is freed on the board whenever that runs.
    """

    def __init__(self, board: socket.socket, server_key: str, patience_s: float) -> None:
        self.token = secrets.token_hex(16)
        """The key that TVM's client must show: other processes find the port, too."""
        self._failure: Failure | None = None
        self._said = b""
        self._control, theirs = socket.socketpair()
        with socket.create_server((LOOPBACK, 0), backlog=8) as listener, theirs:
            self.port: int = listener.getsockname()[1]
            request = {
                "listener": listener.fileno(),
                "board": board.fileno(),
                "greeting": hello(RPC_MAGIC, f"client:{self.token}").hex(),
                "welcome": hello(RPC_MAGIC, server_key).hex(),
                "patience_s": patience_s,
            }
            # -I -S: no site packages, which take longer to look through than the relay to start. A
            # session of its own: Ctrl-C is for the one who waits, who then closes the relay.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", relay_worker.__file__, json.dumps(request)],
                stdin=theirs.fileno(),
                pass_fds=(listener.fileno(), board.fileno()),
                start_new_session=True,
            )
        board.close()
        self._control.setblocking(False)

    @property
    def failure(self) -> Failure | None:
        """Why nothing is relayed any more; None while all is well."""
        if self._failure is None and self._control.fileno() >= 0:
            self._listen()
        return self._failure

    def await_failure(self, seconds: float) -> Failure | None:
        """Return the failure, waiting for the relay to say it where its end was seen before."""
        if self._failure is None and self._control.fileno() >= 0:
            select.select([self._control], [], [], seconds)
        return self.failure

    def _listen(self) -> None:
        try:
            chunk = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self._said += chunk
        if b"\n" in self._said:
            found = json.loads(self._said.split(b"\n")[0])
            self._failure = Failure(
                End(found["end"]),
                found.get("step"),
                found.get("seconds"),
                found.get("reason", ""),
            )
        elif not chunk:
            self._failure = Failure(End.HERE, reason="the relay has ended")

    @contextlib.contextmanager
    def limit(self, step: str, seconds: float) -> Iterator[None]:
        """Hang up on TVM's client if the block takes longer than `seconds`."""
        self._order([step, seconds])
        try:
            yield
        finally:
            self._order(None)

    def _order(self, limit: list[object] | None) -> None:
        # Where it has ended it will say why, or its silence does.
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"limit": limit}).encode() + b"\n")

    def close(self) -> None:
        """End the session: the board sees the connection close, and TVM's client too."""
        if self._failure is None:
            self._failure = Failure(End.HERE)
        self._control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
