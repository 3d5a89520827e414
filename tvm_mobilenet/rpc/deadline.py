"""Sockets with an end: every wait of a client's is one of a step that has so many seconds."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from tvm_mobilenet.errors import DeviceTimeoutError, DeviceUnreachableError, SpecError
from tvm_mobilenet.rpc.address import Address

__all__ = ["DEFAULT_TIMEOUT_S", "Deadline", "Line", "Timeouts", "keep_alive"]

DEFAULT_TIMEOUT_S = 60.0

_CONNECT_S = 10.0
_LOST_LINK_S = 20.0
"""Without an acknowledgement for so long, a connection counts as dead, whatever the deadline."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take, in seconds."""

    connect_s: float = _CONNECT_S
    """One TCP connection, and each answer of the opening of a protocol."""
    queue_s: float = DEFAULT_TIMEOUT_S
    """Waiting for a board to become free."""
    step_s: float = DEFAULT_TIMEOUT_S
    """Every single call after that: an upload, a load, a run."""
    session_s: float = 10 * DEFAULT_TIMEOUT_S
    """What the board is told: after so long it ends the session, even if the host is gone."""

    @classmethod
    def of(cls, timeout_s: float | None) -> Timeouts:
        """Derive all from the one number that a user gives; None for the default.

        Raises:
            SpecError: the number is not above zero.
        """
        if timeout_s is None:
            return cls()
        if not timeout_s > 0:
            raise SpecError(f"timeout-s {timeout_s:g}: give a number of seconds above 0")
        return cls(
            connect_s=min(_CONNECT_S, timeout_s),
            queue_s=timeout_s,
            step_s=timeout_s,
            session_s=max(10 * DEFAULT_TIMEOUT_S, 10 * timeout_s),
        )


class Deadline:
    """A moment that a step must be over by."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 where it is past."""
        return max(0.0, self._end - time.monotonic())

    @property
    def is_past(self) -> bool:
        """Whether nothing is left."""
        return self.left_s <= 0


class Line:
    """A connection to `address`, each use of which is bounded and knows what it is for.

    Args:
        address: where to.
        device: how errors name what is there.
        deadline: for the connection itself.

    Raises:
        DeviceUnreachableError: refused, no such host, or no route.
        DeviceTimeoutError: no answer by then.
    """

    def __init__(self, address: Address, device: str, deadline: Deadline) -> None:
        self.address = address
        self.device = device
        self.socket = self._connect(deadline)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(self.socket)

    def _connect(self, deadline: Deadline) -> socket.socket:
        try:
            return socket.create_connection(
                (self.address.host, self.address.port), timeout=max(0.001, deadline.left_s)
            )
        except TimeoutError as err:
            raise self.timeout("connect", deadline, "nothing answers there") from err
        except OSError as err:
            reason = (err.strerror or str(err)).lower()
            raise DeviceUnreachableError(
                f"{self.address}: {reason}; is it switched on, and is this its address?",
                device=self.device,
                step="connect",
            ) from err

    def timeout(self, step: str, deadline: Deadline, found: str) -> DeviceTimeoutError:
        """Word a deadline that has passed."""
        return DeviceTimeoutError(
            f"{found} (waited {deadline.seconds:g} s for {self.address}); "
            "look at the link and the board, or raise --timeout-s",
            device=self.device,
            step=step,
        )

    def receive(self, count: int, step: str, deadline: Deadline) -> bytes:
        """Return exactly `count` bytes.

        Raises:
            DeviceTimeoutError: they do not come in time.
            DeviceUnreachableError: the other side hangs up.
        """
        parts = bytearray()
        while len(parts) < count:
            chunk = self._receive_some(count - len(parts), step, deadline)
            if not chunk:
                raise DeviceUnreachableError(
                    f"{self.address} hung up; is that the right port, and the right key?",
                    device=self.device,
                    step=step,
                )
            parts += chunk
        return bytes(parts)

    def _receive_some(self, count: int, step: str, deadline: Deadline) -> bytes:
        try:
            self.socket.settimeout(max(0.001, deadline.left_s))
            return self.socket.recv(min(count, 1 << 16))
        except TimeoutError as err:
            raise self.timeout(step, deadline, "it takes connections, and is silent") from err
        except OSError as err:
            raise self._lost(step, err) from err

    def send(self, data: bytes, step: str, deadline: Deadline) -> None:
        """Send all of `data`; raises as `receive` does."""
        try:
            self.socket.settimeout(max(0.001, deadline.left_s))
            self.socket.sendall(data)
        except TimeoutError as err:
            raise self.timeout(step, deadline, "it takes no data") from err
        except OSError as err:
            raise self._lost(step, err) from err

    def _lost(self, step: str, err: OSError) -> DeviceUnreachableError:
        return DeviceUnreachableError(
            f"the connection to {self.address} was lost: {(err.strerror or str(err)).lower()}; is "
            "that the right port, and the right key?",
            device=self.device,
            step=step,
        )

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice a peer that is gone without a word, within some 20 seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Where a system has no such option its own defaults hold; deadlines hold in any case.
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(1e3 * _LOST_LINK_S)),
    ):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
