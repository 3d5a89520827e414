"""Between TVM's client, which waits for ever, and a board, which may have gone.

TVM's client is blocking C++ with no time-out. So it is never given the board's connection: it
connects to a relay in this process, which passes bytes on, and hangs up on it when a deadline
passes. The call in progress then returns at once, with an error.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tvm_mobilenet.rpc.address import LOOPBACK
from tvm_mobilenet.rpc.protocol import RPC_MAGIC, hello

__all__ = ["End", "Failure", "Relay"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20
_CANDIDATES = 8
_TICK_S = 0.5


class End(Enum):
    """How a relayed connection came to its end."""

    TIMEOUT = "a deadline passed"
    LINK = "the link is dead"
    BOARD = "the board hung up"
    HERE = "it was closed here"


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
    """Passes bytes between one client of this process and a board.

    Args:
        board: the connection to the board, its opening done.
        server_key: what the board answered to that, for TVM's client.
        patience_s: how long a request may go unanswered where no `limit` says so: things that are
            freed by the garbage collector go to the board whenever it runs.
    """

    def __init__(self, board: socket.socket, server_key: str, patience_s: float) -> None:
        self.token = secrets.token_hex(16)
        """The key that TVM's client must show: other processes find the port, too."""
        self.failure: Failure | None = None
        self._greeting = hello(RPC_MAGIC, f"client:{self.token}")
        self._welcome = struct.pack("<i", RPC_MAGIC) + struct.pack("<i", len(server_key.encode()))
        self._welcome += server_key.encode()
        self._patience_s = patience_s
        self._board = board
        self._client: socket.socket | None = None
        self._to_board = bytearray()
        self._to_client = bytearray()
        self._asked_at: float | None = None
        self._limit: tuple[float, str, float] | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=_CANDIDATES)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        for one in (board, self._listener, self._wake, self._woken):
            one.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="board relay", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def limit(self, step: str, seconds: float) -> Iterator[None]:
        """Hang up on TVM's client if the block takes longer than `seconds`."""
        with self._lock:
            before, self._limit = self._limit, (time.monotonic() + seconds, step, seconds)
        self._nudge()
        try:
            yield
        finally:
            with self._lock:
                self._limit = before

    def close(self) -> None:
        """End the session: the board sees the connection close, TVM's client too."""
        self._closing = True
        self._nudge()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
            self._wake.send(b"!")

    # Everything below runs on the relay's thread.

    def _run(self) -> None:
        try:
            if self._await_client():
                self._relay()
            self._drain()
        finally:
            self._fail(Failure(End.HERE))
            for one in (self._listener, self._board, self._client, self._wake, self._woken):
                if one is not None:
                    one.close()

    def _fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure

    def _await_client(self) -> bool:
        """Let in the one connection that shows the token."""
        candidates: dict[socket.socket, bytearray] = {}
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                while not self._is_over():
                    for key, _ in selector.select(self._pause_s()):
                        found = key.fileobj
                        assert isinstance(found, socket.socket)
                        if found is self._woken:
                            self._slumber()
                        elif found is self._listener:
                            self._admit(selector, candidates)
                        elif self._shows_token(selector, found, candidates):
                            self._client = found
                            del candidates[found]
                            return True
        finally:
            for candidate in candidates:
                candidate.close()
            self._listener.close()
        return False

    def _admit(
        self, selector: selectors.BaseSelector, candidates: dict[socket.socket, bytearray]
    ) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(candidates) >= _CANDIDATES:
            oldest = next(iter(candidates))
            selector.unregister(oldest)
            oldest.close()
            del candidates[oldest]
        candidates[connection] = bytearray()
        selector.register(connection, selectors.EVENT_READ)

    def _shows_token(
        self,
        selector: selectors.BaseSelector,
        candidate: socket.socket,
        candidates: dict[socket.socket, bytearray],
    ) -> bool:
        shown = candidates[candidate]
        try:
            chunk = candidate.recv(len(self._greeting) - len(shown))
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        shown += chunk
        if chunk and len(shown) < len(self._greeting):
            return False
        selector.unregister(candidate)
        if chunk and hmac.compare_digest(bytes(shown), self._greeting):
            return True
        logger.warning("somebody without the token tried to use a board's session; turned away")
        candidate.close()
        del candidates[candidate]
        return False

    def _relay(self) -> None:
        client = self._client
        assert client is not None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._to_client += self._welcome
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for one in (client, self._board):
                selector.register(one, selectors.EVENT_READ)
            while not self._is_over():
                self._watch(selector, client, self._to_board, self._to_client)
                self._watch(selector, self._board, self._to_client, self._to_board)
                for key, events in selector.select(self._pause_s()):
                    if key.fileobj is self._woken:
                        self._slumber()
                    elif key.fileobj is client:
                        if not self._serve_client(client, events):
                            return
                    elif not self._serve_board(events):
                        return

    @staticmethod
    def _watch(
        selector: selectors.BaseSelector, one: socket.socket, read: bytearray, write: bytearray
    ) -> None:
        """Wait on one side for what there is room for, and room where there is something."""
        events = selectors.EVENT_READ if len(read) < _BUFFER_BYTES else 0
        if write:
            events |= selectors.EVENT_WRITE
        known = selector.get_map().get(one)
        if known is None:
            if events:
                selector.register(one, events)
        elif not events:
            selector.unregister(one)
        elif known.events != events:
            selector.modify(one, events)

    def _serve_client(self, client: socket.socket, events: int) -> bool:
        """Move bytes from and to TVM's client; False where it has let go of the session."""
        try:
            if events & selectors.EVENT_READ:
                chunk = client.recv(_CHUNK_BYTES)
                if not chunk:
                    self._flush_to_board()
                    return False
                self._to_board += chunk
                if self._asked_at is None:
                    self._asked_at = time.monotonic()
            if events & selectors.EVENT_WRITE:
                del self._to_client[: client.send(self._to_client)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _flush_to_board(self) -> None:
        """Pass on the client's farewell, if the board takes it at once."""
        with contextlib.suppress(OSError):
            self._board.send(self._to_board)

    def _serve_board(self, events: int) -> bool:
        """Move bytes from and to the board; False where it has hung up or is lost."""
        try:
            if events & selectors.EVENT_READ:
                chunk = self._board.recv(_CHUNK_BYTES)
                if not chunk:
                    self._fail(Failure(End.BOARD))
                    return False
                self._asked_at = None
                self._to_client += chunk
            if events & selectors.EVENT_WRITE:
                del self._to_board[: self._board.send(self._to_board)]
        except BlockingIOError:
            return True
        except (TimeoutError, ConnectionAbortedError) as err:
            self._fail(Failure(End.LINK, reason=_words(err)))
            return False
        except (ConnectionResetError, BrokenPipeError) as err:
            self._fail(Failure(End.BOARD, reason=_words(err)))
            return False
        except OSError as err:  # no route to it any more
            self._fail(Failure(End.LINK, reason=_words(err)))
            return False
        return True

    def _is_over(self) -> bool:
        if self._closing:
            return True
        now = time.monotonic()
        with self._lock:
            limit = self._limit
        if limit is not None:
            end, step, seconds = limit
            if now >= end:
                self._fail(Failure(End.TIMEOUT, step, seconds))
                return True
        elif self._asked_at is not None and now >= self._asked_at + self._patience_s:
            self._fail(Failure(End.TIMEOUT, "call", self._patience_s))
            return True
        return False

    def _pause_s(self) -> float:
        with self._lock:
            limit = self._limit
        if limit is None:
            return _TICK_S
        return min(_TICK_S, max(0.0, limit[0] - time.monotonic()))

    def _slumber(self) -> None:
        with contextlib.suppress(OSError):
            while self._woken.recv(64):
                pass

    def _drain(self) -> None:
        """Hang up on the board and have TVM's client find its end of file, whatever it is at.

        What it still sends, such as words that free what it held, is taken and dropped; were its
        connection closed instead, sending would fail where it is not expected to.
        """
        if self._client is None or self.failure is None:
            return
        self._board.close()
        client = self._client
        # What the board said last, such as why it ends the session, is still passed on.
        last = bytes(self._to_client) if self.failure.end is End.BOARD else b""
        try:
            client.settimeout(_TICK_S)
            if last:
                client.sendall(last)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            return
        while not self._closing:
            try:
                if not client.recv(_CHUNK_BYTES):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


def _words(err: OSError) -> str:
    return (err.strerror or str(err) or type(err).__name__).lower()
