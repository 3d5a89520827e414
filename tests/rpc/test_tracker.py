"""The tracker against peers of every kind: boards, clients, and what should not be there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_mobilenet.errors import DeviceTimeoutError, DeviceUnreachableError, UsageError
from tvm_mobilenet.rpc.address import Address
from tvm_mobilenet.rpc.deadline import Deadline, Timeouts
from tvm_mobilenet.rpc.devices import list_devices
from tvm_mobilenet.rpc.protocol import MAX_FRAME_BYTES, TRACKER_MAGIC, TrackerCode, frame
from tvm_mobilenet.rpc.tracker import Limits, Tracker
from tvm_mobilenet.rpc.tracker_client import request_board, tracker_state

KEY = b"correct horse battery staple"
MAGIC = struct.pack("<i", TRACKER_MAGIC)


class Running:
    """A tracker on a thread of its own."""

    def __init__(self, **options) -> None:
        self.tracker = Tracker(**options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.address: Address = self._run(self.tracker.start("127.0.0.1", 0))

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def boards(self) -> list[dict]:
        async def look() -> list[dict]:
            return self.tracker.summary()["boards"]

        return self._run(look())

    def stop(self) -> None:
        self._run(self.tracker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Peer:
    """A connection that says whatever a test wants."""

    def __init__(self, address: Address, *, hello: bytes = MAGIC) -> None:
        self.socket = socket.create_connection((address.host, address.port), timeout=10)
        if hello:
            self.socket.sendall(hello)
        if hello == MAGIC:
            assert self.receive(4) == MAGIC

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.socket.recv(count - len(data))
            if not chunk:
                raise ConnectionError("hung up")
            data += chunk
        return data

    def answer(self):
        (size,) = struct.unpack("<i", self.receive(4))
        return json.loads(self.receive(size))

    def ask(self, *message):
        self.socket.sendall(frame(list(message)))
        return self.answer()

    def offer(self, key: str, match_key: str, port: int = 9090, host: str | None = None) -> None:
        assert self.ask(TrackerCode.PUT, key, [port, match_key], host) == TrackerCode.SUCCESS

    def is_hung_up(self) -> bool:
        """Wait for the other side to hang up."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.stop()


@pytest.fixture
def peer(running: Running) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def connect(**options) -> Peer:
        peers.append(Peer(running.address, **options))
        return peers[-1]

    yield connect
    for one in peers:
        one.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def test_a_board_is_given_to_who_asks_for_it(running: Running, peer):
    board, client = peer(), peer()
    board.offer("pi", "pi:0.5", 9091)
    assert board.ask(TrackerCode.GET_PENDING_MATCHKEYS) == ["pi:0.5"]
    assert client.ask(TrackerCode.REQUEST, "pi", "me@here", 1) == [0, ["127.0.0.1", 9091, "pi:0.5"]]
    assert board.ask(TrackerCode.GET_PENDING_MATCHKEYS) == []
    (entry,) = running.boards()
    assert (entry["state"], entry["holder"]) == ("busy", "me@here")
    assert time.time() - 60 < entry["since"] <= time.time()
    board.offer("pi", "pi:0.6", 9091)
    (entry,) = running.boards()
    assert (entry["state"], entry["holder"]) == ("free", None)


def test_a_board_names_an_address_of_its_own_and_its_facts(running: Running, peer):
    board = peer()
    info = {"key": "server:pi", "addr": [None, 9090], "agent": 1, "facts": {"cpu": "Cortex-A72"}}
    assert board.ask(TrackerCode.UPDATE_INFO, info) == TrackerCode.SUCCESS
    board.offer("pi", "pi:1", host="10.1.2.3")
    state = tracker_state(running.address)
    (found,) = state.boards
    assert found.address == Address("10.1.2.3", 9090)
    assert found.has_agent
    assert found.facts is not None
    assert found.facts.cpu == "Cortex-A72"


def test_one_board_never_sees_anothers_match_keys(peer):
    first, second = peer(), peer()
    first.offer("pi", "pi:first")
    second.offer("pi", "pi:second")
    assert first.ask(TrackerCode.GET_PENDING_MATCHKEYS) == ["pi:first"]
    assert second.ask(TrackerCode.GET_PENDING_MATCHKEYS) == ["pi:second"]
    client = peer()
    assert client.ask(TrackerCode.GET_PENDING_MATCHKEYS) == []
    summary = json.dumps(client.ask(TrackerCode.SUMMARY))
    assert "pi:first" not in summary
    assert "pi:second" not in summary


def test_a_board_that_hangs_up_is_struck_out(running: Running, peer):
    board = peer()
    board.offer("pi", "pi:1")
    assert len(running.boards()) == 1
    board.close()
    wait_until(lambda: running.boards() == [])


def test_a_client_that_leaves_the_queue_is_passed_over(running: Running, peer):
    leaver, stayer, board = peer(), peer(), peer()
    leaver.socket.sendall(frame([TrackerCode.REQUEST, "pi", "leaver", 1]))
    wait_until(lambda: len(tracker_state(running.address).waiting) == 1)
    stayer.socket.sendall(frame([TrackerCode.REQUEST, "pi", "stayer", 1]))
    wait_until(lambda: len(tracker_state(running.address).waiting) == 2)
    leaver.close()
    wait_until(lambda: len(tracker_state(running.address).waiting) == 1)
    board.offer("pi", "pi:1")
    assert stayer.answer() == [0, ["127.0.0.1", 9090, "pi:1"]]


def test_nobody_stops_the_tracker_over_the_network(peer):
    client = peer()
    assert client.ask(TrackerCode.STOP, "") == TrackerCode.FAIL
    assert client.ask(TrackerCode.PING) == TrackerCode.SUCCESS


GARBAGE = {
    "other protocol": b"GET / HTTP/1.1\r\nHost: tracker\r\n\r\n",
    "zeroes": bytes(64),
    "oversize": MAGIC + struct.pack("<i", MAX_FRAME_BYTES + 1),
    "negative size": MAGIC + struct.pack("<i", -1),
    "empty frame": MAGIC + struct.pack("<i", 0),
    "no JSON": MAGIC + struct.pack("<i", 4) + b"\xff\xfe[]",
    "deep JSON": MAGIC + struct.pack("<i", 200_000) + b"[" * 200_000,
    "no list": MAGIC + frame({"code": 1}),
    "empty list": MAGIC + frame([]),
    "unknown code": MAGIC + frame([99]),
    "code of a wrong type": MAGIC + frame(["PUT"]),
    "PUT without contents": MAGIC + frame([3]),
    "PUT with a wrong port": MAGIC + frame([3, "pi", [70000, "m"], None]),
    "PUT with a wrong key": MAGIC + frame([3, 7, [9090, "m"], None]),
    "PUT with a long key": MAGIC + frame([3, "k" * 5000, [9090, "m"], None]),
    "REQUEST with a wrong priority": MAGIC + frame([4, "pi", "me", "high"]),
    "UPDATE_INFO with a list": MAGIC + frame([5, []]),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_who_talks_nonsense_is_hung_up_on_and_others_are_served(running, peer, garbage: bytes):
    stranger = peer(hello=garbage)
    assert stranger.is_hung_up()
    board, client = peer(), peer()
    board.offer("pi", "pi:1")
    assert client.ask(TrackerCode.REQUEST, "pi", "me", 1)[1][2] == "pi:1"
    assert len(running.boards()) == 1


@pytest.mark.parametrize(
    "begin",
    [b"", MAGIC[:3], MAGIC + b"\x10\x00\x00\x00[", MAGIC + b"\x10"],
    ids=["nothing", "half a word", "half a message", "half a size"],
)
def test_a_peer_that_falls_silent_in_the_middle_is_hung_up_on(begin: bytes):
    running = Running(limits=Limits(opening_s=0.2, frame_s=0.2))
    try:
        stranger = Peer(running.address, hello=begin)
        assert stranger.is_hung_up()
        stranger.close()
        assert tracker_state(running.address).boards == ()
    finally:
        running.stop()


def test_a_board_that_falls_silent_is_struck_out_and_a_client_is_not():
    running = Running(limits=Limits(silence_s=0.3))
    try:
        board, client = Peer(running.address), Peer(running.address)
        board.offer("pi", "pi:1")
        wait_until(lambda: running.boards() == [])
        assert board.is_hung_up()
        assert client.ask(TrackerCode.PING) == TrackerCode.SUCCESS
        board.close()
        client.close()
    finally:
        running.stop()


def test_a_stock_server_may_be_silent_while_it_serves_and_an_agent_may_not():
    running = Running(limits=Limits(silence_s=0.3))
    try:
        stock, agent, client = (Peer(running.address) for _ in range(3))
        assert agent.ask(TrackerCode.UPDATE_INFO, {"agent": 1}) == TrackerCode.SUCCESS
        stock.offer("pi", "pi:stock")
        assert client.ask(TrackerCode.REQUEST, "pi", "me", 1)[0] == 0
        agent.offer("rock", "rock:agent")
        assert client.ask(TrackerCode.REQUEST, "rock", "me", 1)[0] == 0
        wait_until(lambda: [board["key"] for board in running.boards()] == ["pi"])
        assert agent.is_hung_up()
        assert stock.ask(TrackerCode.GET_PENDING_MATCHKEYS) == []
        for one in (stock, agent, client):
            one.close()
    finally:
        running.stop()


def test_no_peer_uses_more_than_its_share():
    running = Running(limits=Limits(connections=3, requests=2, offers=2))
    try:
        greedy = Peer(running.address)
        for _ in range(3):
            greedy.socket.sendall(frame([TrackerCode.REQUEST, "pi", "greedy", 1]))
        assert greedy.is_hung_up()
        greedy.close()
        hoarder = Peer(running.address)
        for index in range(2):
            hoarder.offer("pi", f"pi:{index}")
        hoarder.socket.sendall(frame([TrackerCode.PUT, "pi", [9090, "pi:3"], None]))
        assert hoarder.is_hung_up()
        hoarder.close()
        wait_until(lambda: running.boards() == [])
        crowd = [Peer(running.address) for _ in range(3)]
        last = Peer(running.address, hello=b"")
        assert last.is_hung_up()
        for one in [*crowd, last]:
            one.close()
    finally:
        running.stop()


def ask_for_ever(peer: Peer) -> None:
    for _ in range(100_000):
        peer.socket.sendall(frame([TrackerCode.SUMMARY]))


def test_who_takes_no_answers_is_hung_up_on():
    running = Running(limits=Limits(frame_s=0.5, unsent_bytes=1 << 16))
    try:
        board = Peer(running.address)
        facts = {"cpu": "x" * 60000}
        assert board.ask(TrackerCode.UPDATE_INFO, {"agent": 1, "facts": facts}) == 0
        board.offer("pi", "pi:1")
        deaf = Peer(running.address)
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises((ConnectionError, TimeoutError)):
            ask_for_ever(deaf)
        deaf.close()
        board.close()
    finally:
        running.stop()


class TestWithAKey:
    @pytest.fixture
    def running(self) -> Iterator[Running]:
        found = Running(auth_key=KEY)
        yield found
        found.stop()

    def test_who_holds_it_is_served(self, running: Running):
        assert tracker_state(running.address, auth_key=KEY).boards == ()

    @pytest.mark.parametrize("key", [None, b"another key of sixteen"], ids=["none", "another"])
    def test_who_does_not_is_refused_at_once(self, running: Running, key: bytes | None):
        with pytest.raises(DeviceUnreachableError, match=r"--auth-key-file|give that file here"):
            tracker_state(running.address, auth_key=key)

    @pytest.mark.parametrize(
        "hello", [MAGIC, b"TVMMNA02" + bytes(32), b"TVMM" + MAGIC], ids=["stock", "later", "mixed"]
    )
    def test_nothing_else_is_listened_to(self, running: Running, hello: bytes):
        stranger = Peer(running.address, hello=b"")
        stranger.socket.sendall(hello + frame([TrackerCode.SUMMARY]))
        with contextlib.suppress(ConnectionResetError):
            assert stranger.socket.recv(4096) == b""
        stranger.close()

    def test_a_proof_is_good_for_one_connection(self, running: Running):
        from tvm_mobilenet.rpc.auth import PREFACE, client_mac

        nonce = b"c" * 32
        first = Peer(running.address, hello=PREFACE + nonce)
        shown = first.receive(8 + 32 + 32)
        proof = client_mac(KEY, nonce, shown[8:40])
        first.socket.sendall(proof)
        assert first.receive(1) == b"\0"
        second = Peer(running.address, hello=PREFACE + nonce)
        assert second.receive(72)[8:40] != shown[8:40]
        second.socket.sendall(proof)
        assert second.is_hung_up()
        first.close()
        second.close()

    def test_the_key_is_nowhere_in_what_it_says(self, running: Running):
        summary = json.dumps(running.tracker.summary())
        assert KEY.decode() not in summary


def test_others_can_reach_it_only_with_a_key():
    async def start() -> None:
        await Tracker().start("0.0.0.0", 0)

    with pytest.raises(UsageError, match=r"no --auth-key-file was given"):
        asyncio.run(start())


def test_an_address_in_use_is_said(running: Running):
    async def start() -> None:
        await Tracker().start("127.0.0.1", running.address.port)

    with pytest.raises(UsageError, match=r"cannot listen there: .*in use"):
        asyncio.run(start())


class TestAsking:
    def test_a_request_that_is_not_served_says_who_holds_the_board(self, running: Running, peer):
        board, holder = peer(), peer()
        board.offer("pi", "pi:1")
        assert holder.ask(TrackerCode.REQUEST, "pi", "alice@desk:7", 1)[0] == 0
        heard: list[str] = []
        with pytest.raises(
            DeviceTimeoutError, match=r"is held by alice@desk:7 for \d+ s"
        ) as caught:
            request_board(running.address, "pi", Deadline(2.5), notify=heard.append)
        assert caught.value.step == "queue"
        assert "alice@desk:7" in heard[0]

    def test_a_key_that_nobody_registered_is_said(self, running: Running, peer):
        peer().offer("rock", "rock:1")
        with pytest.raises(DeviceTimeoutError, match=r"under 'pi' \(registered: rock\)"):
            request_board(running.address, "pi", Deadline(0.2))

    def test_a_tracker_that_ends_while_one_waits_is_said(self, running: Running):
        failure: list[BaseException] = []

        def wait() -> None:
            try:
                request_board(running.address, "pi", Deadline(20))
            except DeviceUnreachableError as err:
                failure.append(err)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: len(tracker_state(running.address).waiting) == 1)
        for one in list(running.tracker._peers):
            running._loop.call_soon_threadsafe(one.hang_up)
        thread.join(10)
        assert "hung up" in str(failure[0])

    def test_what_is_no_tracker_is_said(self):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                with server.accept()[0] as one:
                    one.recv(4)
                    one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(DeviceUnreachableError, match="is no tracker; give the address"):
                tracker_state(Address("127.0.0.1", server.getsockname()[1]))
            thread.join(10)

    def test_a_tracker_that_never_answers_is_a_time_out(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = Address("127.0.0.1", server.getsockname()[1])
            with pytest.raises(DeviceTimeoutError, match="takes connections, and is silent"):
                tracker_state(address, timeouts=Timeouts(connect_s=0.2))

    def test_a_list_names_boards_that_do_not_answer(self, running: Running, peer, tmp_path: Path):
        board, stock = peer(), peer()
        assert board.ask(TrackerCode.UPDATE_INFO, {"agent": 1, "facts": {"cpu": "A72"}}) == 0
        board.offer("pi", "pi:1", port=1)
        stock.offer("rock", "rock:1")
        found = list_devices(str(running.address))
        pi, rock = found.devices
        assert "connection refused" in (pi.problem or "")
        assert pi.facts is not None
        assert pi.facts.cpu == "A72"
        assert rock.problem is None
        assert rock.facts is None
        content = json.loads(json.dumps(found.to_dict()))
        assert [device["state"] for device in content["devices"]] == ["free", "free"]
