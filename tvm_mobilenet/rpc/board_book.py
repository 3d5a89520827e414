"""Who has which board and who waits for one: the tracker's books, without a socket in them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BoardBook", "BoardEntry", "Request"]


@dataclass(slots=True, eq=False)
class BoardEntry:
    """One board: a connection that offered itself."""

    peer: str
    """The address that the connection came from."""
    key: str | None = None
    host: str | None = None
    port: int | None = None
    offers: list[str] = field(default_factory=list)
    """The match keys that have not been given to anybody, oldest first. They are what opens the
    board: nobody but the one that a board is granted to learns one."""
    holder: str | None = None
    """Whom the board was granted to; None while it is free."""
    since: float = field(default_factory=time.time)
    """When the board became free or busy, in seconds since 1970."""
    info: dict[str, Any] = field(default_factory=dict)
    """What the board says of itself."""

    @property
    def is_board(self) -> bool:
        """Whether the connection has offered anything yet."""
        return self.key is not None

    def to_dict(self) -> dict[str, Any]:
        """Return what anybody may know."""
        return {
            "key": self.key,
            "host": self.host,
            "port": self.port,
            "state": "free" if self.offers else "busy",
            "since": self.since,
            "holder": self.holder,
            "agent": self.info.get("agent"),
            "facts": self.info.get("facts"),
        }


@dataclass(slots=True, eq=False)
class Request:
    """Somebody who waits for a board."""

    key: str
    user: str
    priority: float
    grant: Callable[[str, int, str], bool]
    """Told host, port and match key; returns False where the one who waited has gone."""
    since: float = field(default_factory=time.time)
    turn: int = 0


class BoardBook:
    """Boards and requests, matched first come first served within a priority, higher ones first."""

    def __init__(self) -> None:
        self._boards: list[BoardEntry] = []
        self._requests: list[Request] = []
        self._turns = itertools.count()

    @property
    def boards(self) -> tuple[BoardEntry, ...]:
        """Every board that is connected, in the order in which they came."""
        return tuple(self._boards)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Everybody who waits, in the order in which they are served."""
        return tuple(self._requests)

    def offer(self, board: BoardEntry, key: str, host: str, port: int, match_key: str) -> None:
        """Note that a board is free; whoever waits longest for its key gets it."""
        if board not in self._boards:
            self._boards.append(board)
        board.key, board.host, board.port = key, host, port
        board.offers.append(match_key)
        board.holder, board.since = None, time.time()
        self._match(key)

    def request(self, request: Request) -> None:
        """Grant a board now, or once one is free."""
        request.turn = next(self._turns)
        self._requests.append(request)
        self._requests.sort(key=lambda waiting: (-waiting.priority, waiting.turn))
        self._match(request.key)

    def forget(self, board: BoardEntry) -> None:
        """Strike out a board that has gone."""
        if board in self._boards:
            self._boards.remove(board)
        board.offers.clear()

    def withdraw(self, request: Request) -> None:
        """Strike out somebody who waits no longer."""
        if request in self._requests:
            self._requests.remove(request)

    def _match(self, key: str) -> None:
        while True:
            # The board that has been free longest: several boards of one key wear alike.
            free = [board for board in self._boards if board.key == key and board.offers]
            waiting = next((request for request in self._requests if request.key == key), None)
            if not free or waiting is None:
                return
            board = min(free, key=lambda entry: entry.since)
            self._requests.remove(waiting)
            assert board.host is not None
            assert board.port is not None
            if waiting.grant(board.host, board.port, board.offers[0]):
                board.offers.pop(0)
                board.holder, board.since = waiting.user, time.time()

    def summary(self) -> dict[str, Any]:
        """Return the state in the words of TVM's tracker, and beside it in our own."""
        keys = dict.fromkeys(
            [board.key for board in self._boards if board.key]
            + [request.key for request in self._requests]
        )
        return {
            "queue_info": {
                key: {
                    "free": sum(len(b.offers) for b in self._boards if b.key == key),
                    "pending": sum(r.key == key for r in self._requests),
                }
                for key in keys
            },
            "server_info": [
                {"key": f"server:{board.key}", "addr": [board.host, board.port]}
                for board in self._boards
            ],
            "boards": [board.to_dict() for board in self._boards],
            "waiting": [
                {"key": r.key, "user": r.user, "priority": r.priority, "since": r.since}
                for r in self._requests
            ],
        }
