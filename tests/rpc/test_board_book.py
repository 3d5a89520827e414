"""First come, first served; and nobody learns what opens a board but the one who gets it."""

from __future__ import annotations

import json

from tvm_mobilenet.rpc.board_book import BoardBook, BoardEntry, Request


class Client:
    def __init__(self, book: BoardBook, user: str, key: str = "pi", priority: float = 1):
        self.got: list[tuple[str, int, str]] = []
        self.is_there = True
        self.request = Request(key=key, user=user, priority=priority, grant=self._grant)
        book.request(self.request)

    def _grant(self, host: str, port: int, match_key: str) -> bool:
        if self.is_there:
            self.got.append((host, port, match_key))
        return self.is_there


def test_whoever_waits_longest_is_served_first():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    clients = [Client(book, f"user {index}") for index in range(4)]
    for turn, client in enumerate(clients):
        book.offer(board, "pi", "10.0.0.1", 9090, f"pi:{turn}")
        assert client.got == [("10.0.0.1", 9090, f"pi:{turn}")]
        assert board.holder == f"user {turn}"
        assert [request.user for request in book.requests] == [
            f"user {later}" for later in range(turn + 1, 4)
        ]


def test_a_higher_priority_goes_first_and_keeps_the_order_within():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    low, first, second = (
        Client(book, "low", priority=1),
        Client(book, "first", priority=5),
        Client(book, "second", priority=5),
    )
    for turn, client in enumerate((first, second, low)):
        book.offer(board, "pi", "10.0.0.1", 9090, str(turn))
        assert client.got == [("10.0.0.1", 9090, str(turn))]


def test_boards_of_one_key_serve_side_by_side():
    book = BoardBook()
    for index in range(3):
        book.offer(BoardEntry(f"10.0.0.{index}"), "pi", f"10.0.0.{index}", 9090, str(index))
    clients = [Client(book, str(index)) for index in range(4)]
    assert [len(client.got) for client in clients] == [1, 1, 1, 0]
    assert len({client.got[0][0] for client in clients[:3]}) == 3


def test_another_kind_of_board_is_not_given_out():
    book = BoardBook()
    client = Client(book, "me", key="rock")
    book.offer(BoardEntry("10.0.0.1"), "pi", "10.0.0.1", 9090, "a")
    assert client.got == []
    assert book.summary()["queue_info"] == {
        "pi": {"free": 1, "pending": 0},
        "rock": {"free": 0, "pending": 1},
    }


def test_a_client_that_has_gone_does_not_take_a_board_with_it():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    gone, here = Client(book, "gone"), Client(book, "here")
    gone.is_there = False
    book.offer(board, "pi", "10.0.0.1", 9090, "a")
    assert here.got == [("10.0.0.1", 9090, "a")]
    assert gone.got == []


def test_a_client_that_withdraws_is_not_served():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    client = Client(book, "me")
    book.withdraw(client.request)
    book.offer(board, "pi", "10.0.0.1", 9090, "a")
    assert client.got == []
    assert book.boards[0].to_dict()["state"] == "free"


def test_a_board_that_has_gone_is_not_given_out():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    book.offer(board, "pi", "10.0.0.1", 9090, "a")
    book.forget(board)
    assert Client(book, "me").got == []
    assert book.boards == ()


def test_a_summary_holds_no_match_key():
    book, board = BoardBook(), BoardEntry("10.0.0.1")
    book.offer(board, "pi", "10.0.0.1", 9090, "pi:the-secret")
    Client(book, "waits", key="rock")
    assert "the-secret" not in json.dumps(book.summary())
    Client(book, "me")
    summary = book.summary()
    assert "the-secret" not in json.dumps(summary)
    assert summary["boards"][0]["state"] == "busy"
    assert summary["boards"][0]["holder"] == "me"
    assert summary["server_info"] == [{"key": "server:pi", "addr": ["10.0.0.1", 9090]}]
