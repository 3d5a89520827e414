"""The tracker: boards offer themselves, clients ask for one, and it brings them together.

It speaks the protocol of TVM's tracker, so that stock servers and clients work with it. Beyond that
it says who holds a board since when, drops boards that have fallen silent, and bounds everything
that a peer can make it do. It keeps no state on disk: boards come back by themselves after a
restart, and with them all that it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm_mobilenet
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.rpc.address import LOOPBACK, Address
from tvm_mobilenet.rpc.auth import (
    MAC_BYTES,
    NONCE_BYTES,
    PREFACE,
    WELCOME,
    client_mac,
    require_key,
    server_mac,
)
from tvm_mobilenet.rpc.board_book import BoardBook, BoardEntry, Request
from tvm_mobilenet.rpc.deadline import keep_alive
from tvm_mobilenet.rpc.protocol import MAX_FRAME_BYTES, TRACKER_MAGIC, TrackerCode, frame

__all__ = ["DEFAULT_PORT", "Limits", "Tracker", "run_tracker"]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9190


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer, and all of them together, may use."""

    connections: int = 1024
    opening_s: float = 10.0
    """From the connection to the end of the preface and the first word."""
    frame_s: float = 10.0
    """From a message's first byte to its last."""
    silence_s: float = 30.0
    """A board that reports every two seconds counts as gone after so long."""
    requests: int = 64
    """Boards that one connection may wait for at a time."""
    offers: int = 64
    """Match keys that one connection may have open."""
    unsent_bytes: int = 4 << 20
    """Of answers that a peer does not take."""
    text: int = 512
    """Characters of a key or a name."""
    facts_bytes: int = 64 << 10
    """Of what a board says of itself."""


class _Refused(Exception):
    """The peer does not keep to the protocol; the text says in what."""


class Tracker:
    """A tracker on one address.

    Args:
        auth_key: what peers must prove that they hold; None for no such proof.
        limits: see `Limits`.
    """

    def __init__(self, *, auth_key: bytes | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.book = BoardBook()
        self._auth_key = auth_key
        self._server: asyncio.Server | None = None
        self._started = time.time()
        self._peers: set[_Peer] = set()

    async def start(self, host: str = LOOPBACK, port: int = DEFAULT_PORT) -> Address:
        """Listen and return the address, with the port that was picked where `port` is 0.

        Raises:
            UsageError: the address is others' to reach and there is no key, or it cannot be had.
        """
        address = Address(host, port)
        require_key(address, self._auth_key)
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=1 << 16)
        except OSError as err:
            reason = (err.strerror or str(err)).lower()
            raise UsageError(
                f"host {host}, port {port}: cannot listen there: {reason}; give others"
            ) from err
        found: int = self._server.sockets[0].getsockname()[1]
        return Address(host, found)

    async def stop(self) -> None:
        """Stop listening and hang up on everybody."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.hang_up()
        if self._server is not None:
            await self._server.wait_closed()
        while self._peers:
            await asyncio.sleep(0.01)

    def summary(self) -> dict[str, Any]:
        """Return who is there, who holds what and who waits."""
        return {
            **self.book.summary(),
            "tracker": {"version": tvm_mobilenet.__version__, "started": self._started},
        }

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(self, reader, writer)
        self._peers.add(peer)
        try:
            if len(self._peers) > self.limits.connections:
                raise _Refused(f"there are {self.limits.connections} connections already")
            await asyncio.wait_for(peer.open(self._auth_key), self.limits.opening_s)
            await peer.converse()
        except _Refused as err:
            logger.warning("%s: %s; hung up", peer.name, err)
        except (asyncio.TimeoutError, TimeoutError):
            logger.warning("%s: fell silent in the middle; hung up", peer.name)
        except (asyncio.IncompleteReadError, OSError):
            logger.info("%s: gone", peer.name)
        except asyncio.CancelledError:
            logger.info("%s: left as the tracker ends", peer.name)
        finally:
            self._peers.discard(peer)
            peer.leave()
            peer.hang_up()


class _Peer:
    """One connection: a board, a client, or neither yet."""

    def __init__(
        self, tracker: Tracker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._tracker = tracker
        self._limits = tracker.limits
        self._reader = reader
        self._writer = writer
        address = writer.get_extra_info("peername") or ("?", 0)
        self.name = f"{address[0]}:{address[1]}"
        self._board = BoardEntry(str(address[0]))
        self._waiting: list[Request] = []
        keep_alive(_raw_socket(writer))

    async def open(self, auth_key: bytes | None) -> None:
        """Go through the preface, where there is a key, and the protocol's first word."""
        if auth_key is not None:
            await self._authenticate(auth_key)
        (magic,) = struct.unpack("<i", await self._reader.readexactly(4))
        if magic != TRACKER_MAGIC:
            raise _Refused("does not speak the tracker's protocol")
        self._writer.write(struct.pack("<i", TRACKER_MAGIC))

    async def _authenticate(self, key: bytes) -> None:
        # In two parts: who comes without a key says four bytes and waits.
        for part in (PREFACE[:4], PREFACE[4:]):
            if await self._reader.readexactly(4) != part:
                raise _Refused("came without the preface that the key asks for")
        client_nonce = await self._reader.readexactly(NONCE_BYTES)
        server_nonce = secrets.token_bytes(NONCE_BYTES)
        proof = server_mac(key, client_nonce, server_nonce)
        self._writer.write(PREFACE + server_nonce + proof)
        answer = await self._reader.readexactly(MAC_BYTES)
        if not hmac.compare_digest(answer, client_mac(key, client_nonce, server_nonce)):
            raise _Refused("holds another key")
        self._writer.write(WELCOME)

    async def converse(self) -> None:
        """Answer messages until the peer hangs up."""
        while True:
            head = await self._first_bytes()
            (size,) = struct.unpack("<i", head)
            if not 0 < size <= MAX_FRAME_BYTES:
                raise _Refused(f"announced a message of {size} bytes")
            body = await asyncio.wait_for(self._reader.readexactly(size), self._limits.frame_s)
            try:
                message = json.loads(body)
            except (ValueError, RecursionError) as err:
                raise _Refused("sent what is no JSON") from err
            self._answer(message)
            await asyncio.wait_for(self._writer.drain(), self._limits.frame_s)

    async def _first_bytes(self) -> bytes:
        while True:
            try:
                begin = await asyncio.wait_for(self._reader.readexactly(1), self._limits.silence_s)
                break
            except (asyncio.TimeoutError, TimeoutError):
                if self._must_report():
                    raise
        return begin + await asyncio.wait_for(self._reader.readexactly(3), self._limits.frame_s)

    def _must_report(self) -> bool:
        """Tell whether silence means death.

        A stock server reports every two seconds while it is free and is silent while it serves; our
        agent reports all the time. A client may be silent as long as it likes. A peer whose machine
        has gone is found by the kernel in any case.
        """
        return bool(self._board.offers) or (self._board.is_board and "agent" in self._board.info)

    def _answer(self, message: Any) -> None:
        if not isinstance(message, list) or not message:
            raise _Refused("sent a message that is no list")
        code, arguments = message[0], message[1:]
        try:
            if code == TrackerCode.PUT:
                self._put(*arguments)
            elif code == TrackerCode.REQUEST:
                self._request(*arguments)
            elif code == TrackerCode.PING:
                self.send(TrackerCode.SUCCESS)
            elif code == TrackerCode.GET_PENDING_MATCHKEYS:
                self.send(list(self._board.offers))  # its own, and nobody else's
            elif code == TrackerCode.UPDATE_INFO:
                self._update_info(*arguments)
            elif code == TrackerCode.SUMMARY:
                self.send([TrackerCode.SUCCESS, self._tracker.summary()])
            elif code == TrackerCode.STOP:
                self.send(TrackerCode.FAIL)  # nobody holds a key to that; a signal ends it
            else:
                raise _Refused(f"sent a message of the unknown kind {str(code)[:20]!r}")
        except (TypeError, ValueError) as err:
            raise _Refused(f"sent a message of kind {code} with wrong contents") from err

    def _put(self, key: object, resource: Any, custom_host: object = None) -> None:
        port, match_key = resource
        host = self._text(custom_host) if custom_host is not None else self._board.peer
        if len(self._board.offers) >= self._limits.offers:
            raise _Refused(f"has {self._limits.offers} offers open")
        text = self._text(match_key)
        # The answer goes first: what is granted at once is a message to somebody else.
        self.send(TrackerCode.SUCCESS)
        self._tracker.book.offer(self._board, self._text(key), host, _port(port), text)

    def _request(self, key: object, user: object, priority: object = 1, *_rest: object) -> None:
        if len(self._waiting) >= self._limits.requests:
            raise _Refused(f"waits for {self._limits.requests} boards already")
        if not isinstance(priority, int | float):
            raise TypeError(priority)
        request = Request(
            key=self._text(key),
            user=self._text(user) or self.name,
            priority=priority,
            grant=lambda *resource: self._grant(request, *resource),
        )
        self._waiting.append(request)
        self._tracker.book.request(request)

    def _grant(self, request: Request, host: str, port: int, match_key: str) -> bool:
        self._waiting.remove(request)
        if self._writer.is_closing():
            return False
        self.send([TrackerCode.SUCCESS, [host, port, match_key]])
        return not self._writer.is_closing()

    def _update_info(self, info: Any) -> None:
        if not isinstance(info, dict):
            raise TypeError(info)
        facts = info.get("facts")
        if isinstance(facts, dict) and len(json.dumps(facts)) <= self._limits.facts_bytes:
            self._board.info["facts"] = facts
        if isinstance(info.get("agent"), int | str):
            self._board.info["agent"] = info["agent"]
        self.send(TrackerCode.SUCCESS)

    def _text(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > self._limits.text:
            raise TypeError(value)
        return "".join(character for character in value if character.isprintable())

    def send(self, value: Any) -> None:
        """Answer, unless the peer does not take what it was sent before."""
        if self._writer.is_closing():
            return
        self._writer.write(frame(value))
        transport = self._writer.transport
        if transport.get_write_buffer_size() > self._limits.unsent_bytes:
            logger.warning("%s: takes no answers; hung up", self.name)
            transport.abort()

    def leave(self) -> None:
        """Strike the peer out of the books."""
        self._tracker.book.forget(self._board)
        for request in self._waiting:
            self._tracker.book.withdraw(request)

    def hang_up(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()


def _raw_socket(writer: asyncio.StreamWriter) -> socket.socket:
    found: socket.socket = writer.get_extra_info("socket")
    # asyncio hands out a wrapper; options are set through a socket of our own on the same file.
    return getattr(found, "_sock", found)


def _port(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(value)
    return value


def run_tracker(
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    *,
    auth_key: bytes | None = None,
    on_ready: Callable[[Address], None] | None = None,
) -> None:
    """Run a tracker until SIGINT or SIGTERM.

    Args:
        host: where to listen; anywhere but on this machine's own address it needs a key.
        port: 0 picks one.
        auth_key: what peers must prove that they hold.
        on_ready: told the address once it listens.

    Raises:
        UsageError: it cannot listen there, or may not without a key.
    """

    async def main() -> None:
        tracker = Tracker(auth_key=auth_key)
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end.set)
        address = await tracker.start(host, port)
        if on_ready is not None:
            on_ready(address)
        await end.wait()
        await tracker.stop()

    asyncio.run(main())
