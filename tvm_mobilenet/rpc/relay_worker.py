"""The process that stands between TVM's client and a board; see `tvm_mobilenet.rpc.relay`.

Started by file name, with nothing but the standard library on its path, so that it is there within
some 20 milliseconds. Its standard input is the control channel, one JSON object a line:

    in    {"limit": ["run", 60.0]}   from now on hang up unless the limit changes within 60 seconds
          {"limit": null}            no limit but the general patience
          end of file                close everything and end
    out   {"end": ..., ...}          once: why nothing is relayed any more
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import socket
import sys
import time
from typing import Any

CHUNK_BYTES = 1 << 18
BUFFER_BYTES = 1 << 20
CANDIDATES = 8
TICK_S = 0.5
CONTROL_BYTES = 1 << 16

TIMEOUT, LINK, BOARD, HERE = "timeout", "link", "board", "here"


class RelayWorker:
    """Passes bytes between one client and a board until either goes or time is up."""

    def __init__(
        self,
        control: socket.socket,
        listener: socket.socket,
        board: socket.socket,
        greeting: bytes,
        welcome: bytes,
        patience_s: float,
    ) -> None:
        self._control = control
        self._listener = listener
        self._board = board
        self._greeting = greeting
        self._patience_s = patience_s
        self._client: socket.socket | None = None
        self._to_board = bytearray()
        self._to_client = bytearray(welcome)
        self._orders = bytearray()
        self._asked_at: float | None = None
        self._limit: tuple[float, str, float] | None = None
        self._closing = False
        self._end: str | None = None
        for one in (control, listener, board):
            one.setblocking(False)

    def run(self) -> None:
        """Do it all and return once everything is closed."""
        try:
            if self._await_client():
                self._relay()
            self._drain()
        finally:
            for one in (self._listener, self._board, self._client, self._control):
                if one is not None:
                    one.close()

    def _fail(self, end: str, **details: Any) -> None:
        """Tell the parent, before TVM's client can notice anything."""
        if self._end is None:
            self._end = end
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"end": end, **details}).encode() + b"\n")

    def _obey(self) -> None:
        """Read what the parent wants; its end is the end."""
        try:
            chunk = self._control.recv(CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._closing = True
            return
        self._orders += chunk
        *lines, rest = self._orders.split(b"\n")
        self._orders = bytearray(rest)
        for line in lines:
            limit = json.loads(line)["limit"]
            self._limit = (time.monotonic() + limit[1], limit[0], limit[1]) if limit else None

    def _await_client(self) -> bool:
        """Let in the one connection that shows the token: other processes find the port, too."""
        candidates: dict[socket.socket, bytearray] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._control, selectors.EVENT_READ)
            while not self._is_over():
                for key, _ in selector.select(self._pause_s()):
                    found = key.fileobj
                    assert isinstance(found, socket.socket)
                    if found is self._control:
                        self._obey()
                    elif found is self._listener:
                        self._admit(selector, candidates)
                    elif self._shows_token(selector, found, candidates):
                        self._client = found
                        for other in candidates:
                            if other is not found:
                                other.close()
                        self._listener.close()
                        return True
        for other in candidates:
            other.close()
        return False

    def _admit(
        self, selector: selectors.BaseSelector, candidates: dict[socket.socket, bytearray]
    ) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(candidates) >= CANDIDATES:
            self._dismiss(selector, next(iter(candidates)), candidates)
        candidates[connection] = bytearray()
        selector.register(connection, selectors.EVENT_READ)

    @staticmethod
    def _dismiss(
        selector: selectors.BaseSelector,
        candidate: socket.socket,
        candidates: dict[socket.socket, bytearray],
    ) -> None:
        selector.unregister(candidate)
        candidate.close()
        del candidates[candidate]

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
        if chunk and hmac.compare_digest(bytes(shown), self._greeting):
            return True
        self._dismiss(selector, candidate, candidates)
        return False

    def _relay(self) -> None:
        client = self._client
        assert client is not None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            while not self._is_over():
                self._watch(selector, client, self._to_board, self._to_client)
                self._watch(selector, self._board, self._to_client, self._to_board)
                for key, events in selector.select(self._pause_s()):
                    if key.fileobj is self._control:
                        self._obey()
                    elif key.fileobj is client:
                        if not self._serve_client(client, events):
                            return
                    elif not self._serve_board(events):
                        return

    @staticmethod
    def _watch(
        selector: selectors.BaseSelector, one: socket.socket, read: bytearray, write: bytearray
    ) -> None:
        """Wait on one side for data if there is room for it, and for room if there is data."""
        events = selectors.EVENT_READ if len(read) < BUFFER_BYTES else 0
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
                chunk = client.recv(CHUNK_BYTES)
                if not chunk:
                    with contextlib.suppress(OSError):  # its farewell, if the board takes it
                        self._board.send(self._to_board)
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

    def _serve_board(self, events: int) -> bool:
        """Move bytes from and to the board; False where it has hung up or is lost."""
        try:
            if events & selectors.EVENT_READ:
                chunk = self._board.recv(CHUNK_BYTES)
                if not chunk:
                    self._fail(BOARD)
                    return False
                self._asked_at = None
                self._to_client += chunk
            if events & selectors.EVENT_WRITE:
                del self._to_board[: self._board.send(self._to_board)]
        except BlockingIOError:
            return True
        except (ConnectionResetError, BrokenPipeError) as err:
            self._take_last_words()
            self._fail(BOARD, reason=_words(err))
            return False
        except OSError as err:  # no acknowledgement for too long, or no route any more
            self._fail(LINK, reason=_words(err))
            return False
        return True

    def _take_last_words(self) -> None:
        """Read what a board said before it hung up on what was being sent to it."""
        with contextlib.suppress(OSError):
            while chunk := self._board.recv(CHUNK_BYTES):
                self._to_client += chunk

    def _is_over(self) -> bool:
        if self._closing:
            return True
        now = time.monotonic()
        if self._limit is not None:
            end, step, seconds = self._limit
            if now >= end:
                self._fail(TIMEOUT, step=step, seconds=seconds)
                return True
        elif self._asked_at is not None and now >= self._asked_at + self._patience_s:
            self._fail(TIMEOUT, step="call", seconds=self._patience_s)
            return True
        return False

    def _pause_s(self) -> float:
        if self._limit is None:
            return TICK_S
        return min(TICK_S, max(0.0, self._limit[0] - time.monotonic()))

    def _drain(self) -> None:
        """Hang up on the board and have TVM's client find its end of file, whatever it is at.

        What it still sends is taken and dropped: closing a connection with unread data resets it,
        and the reset would overtake what the board said last, such as why it ends the session.
        """
        self._board.close()
        client = self._client
        if client is None or self._end is None:
            return
        try:
            client.settimeout(TICK_S)
            if self._end == BOARD and self._to_client:
                client.sendall(self._to_client)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            return
        while not self._closing:
            try:
                if not client.recv(CHUNK_BYTES):
                    return
            except TimeoutError:
                self._obey()
            except OSError:
                return


def _words(err: OSError) -> str:
    return (err.strerror or str(err) or type(err).__name__).lower()


def main(request: str) -> None:
    """Take over the sockets that the parent has passed on."""
    wanted = json.loads(request)
    numbers = (0, wanted["listener"], wanted["board"])
    control, listener, board = (socket.socket(fileno=number) for number in numbers)
    RelayWorker(
        control,
        listener,
        board,
        greeting=bytes.fromhex(wanted["greeting"]),
        welcome=bytes.fromhex(wanted["welcome"]),
        patience_s=wanted["patience_s"],
    ).run()


if __name__ == "__main__":
    main(sys.argv[1])
