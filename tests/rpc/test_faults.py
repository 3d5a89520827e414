"""What goes wrong between a host and its boards. After each: an error in time, and the next job
on that board succeeds with nobody touching anything."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.rpc.processes import AgentProcess, BadLink, TrackerProcess
from tests.rpc.test_session import MANY, same_as_here
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import DeviceError, DeviceTimeoutError
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.rpc.tracker_client import TrackerState, tracker_state

LIMIT_S = 2.0
"""The client's time-out where one is to run out."""


def state_of(tracker: TrackerProcess) -> TrackerState:
    return tracker_state(parse_address(tracker.address))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


class TestTracker:
    def test_killed_and_restarted_while_boards_and_clients_live(
        self, tmp_path: Path, start_agent, artifact: Artifact
    ):
        with closing(TrackerProcess(tmp_path)) as tracker:
            port = tracker.port
            for _ in range(2):
                start_agent("--tracker", tracker.address, "--key", "pi")
            wait_until(lambda: len(state_of(tracker).boards) == 2)
            device = connect(tracker=tracker.address, key="pi", timeout_s=60)
            executor = device.open(artifact, 1)
            tracker.kill()
            # A session does not need the tracker; who asks for one does.
            (inputs,) = seeded(artifact.manifest, 1)
            assert executor.run(inputs)
            with pytest.raises(DeviceError, match=r"connect: .*refused"):
                device.session()
        with closing(TrackerProcess(tmp_path, port=port)) as tracker:
            wait_until(lambda: len(state_of(tracker).boards) >= 1)
            same_as_here(artifact, device)
            assert executor.run(inputs)
            executor.close()
            wait_until(lambda: state_of(tracker).free.get("pi") == 2)
            same_as_here(artifact, device)

    def test_a_board_that_was_switched_off_is_struck_out(
        self, start_tracker, start_agent, artifact: Artifact
    ):
        tracker = start_tracker()
        lost = start_agent("--tracker", tracker.address, "--key", "pi")
        wait_until(lambda: len(state_of(tracker).boards) == 1)
        start_agent("--tracker", tracker.address, "--key", "pi")
        wait_until(lambda: len(state_of(tracker).boards) == 2)
        lost.kill()
        same_as_here(artifact, connect(tracker=tracker.address, key="pi"))
        wait_until(lambda: len(state_of(tracker).boards) == 1)

    def test_a_wrong_key_and_garbage_change_nothing(
        self, start_tracker, start_agent, artifact: Artifact, key_file: Path
    ):
        tracker = start_tracker(key_file=key_file)
        agent = start_agent(
            "--tracker", tracker.address, "--key", "pi", "--auth-key-file", key_file
        )
        device = connect(tracker=tracker.address, key="pi", auth_key_file=key_file)
        same_as_here(artifact, device)
        noise = random.Random(0)
        for port in (tracker.port, agent.port):
            for size in (1, 7, 64, 5000):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
                    stranger.sendall(noise.randbytes(size))
            with pytest.raises(DeviceError):
                connect(tracker=f"127.0.0.1:{port}", key="pi", timeout_s=LIMIT_S).session()
        same_as_here(artifact, device)

    def test_half_open_connections_keep_nobody_out(
        self, start_tracker, start_agent, artifact: Artifact
    ):
        tracker = start_tracker()
        agent = start_agent("--tracker", tracker.address, "--key", "pi")
        silent = [
            socket.create_connection(("127.0.0.1", port))
            for port in (tracker.port, agent.port)
            for _ in range(5)
        ]
        same_as_here(artifact, connect(tracker=tracker.address, key="pi"))
        for one in silent:
            one.close()


class TestDeadLink:
    """Nothing is passed on any more, and nothing is closed: the cable was pulled."""

    def test_in_the_middle_of_a_run(
        self, start_agent, bad_link: Callable[[str], BadLink], artifact: Artifact
    ):
        agent = start_agent("--session-timeout-s", 5)
        link = bad_link(agent.address)
        (inputs,) = seeded(artifact.manifest, 1)
        with connect(link.address, timeout_s=LIMIT_S).open(artifact, 1) as executor:
            assert executor.run(inputs)
            timer = threading.Timer(0.3, link.stop)
            timer.start()
            with pytest.raises(DeviceTimeoutError, match=r"run: no answer within 2 s") as caught:
                executor.times_ms(inputs, MANY)
            timer.join()
            assert caught.value.exit_code == 4
            with pytest.raises(DeviceTimeoutError):
                executor.run(inputs)
        same_as_here(artifact, connect(agent.address))

    def test_in_the_middle_of_an_upload(
        self, start_agent, bad_link: Callable[[str], BadLink], artifact: Artifact, tmp_path: Path
    ):
        agent = start_agent("--session-timeout-s", 5)
        link = bad_link(agent.address)
        large = tmp_path / "large.bin"
        large.write_bytes(np.random.default_rng(0).bytes(24 << 20))
        session = connect(link.address, timeout_s=LIMIT_S).session()
        link.stop_after(4 << 20)
        with pytest.raises(DeviceTimeoutError, match=r"upload: no answer within 2 s"):
            session.upload(large, "large.bin")
        session.close()
        same_as_here(artifact, connect(agent.address))

    def test_before_the_first_byte(
        self, agent: AgentProcess, bad_link: Callable[[str], BadLink], artifact: Artifact
    ):
        link = bad_link(agent.address)
        link.stop()
        with pytest.raises(
            DeviceTimeoutError, match=r"queue: .* did not begin a session"
        ) as caught:
            connect(link.address, timeout_s=LIMIT_S).open(artifact)
        assert caught.value.device == link.address
        same_as_here(artifact, connect(agent.address))

    def test_to_the_tracker(
        self, start_tracker, start_agent, bad_link: Callable[[str], BadLink], artifact: Artifact
    ):
        tracker = start_tracker()
        start_agent("--tracker", tracker.address, "--key", "pi")
        link = bad_link(tracker.address)
        link.stop()
        with pytest.raises(DeviceTimeoutError, match="takes connections, and is silent"):
            connect(tracker=link.address, key="pi", timeout_s=LIMIT_S).session()
        same_as_here(artifact, connect(tracker=tracker.address, key="pi"))


class TestBoard:
    def test_the_agent_is_killed_in_the_middle_of_a_run(
        self, start_tracker, start_agent, artifact: Artifact
    ):
        tracker = start_tracker()
        lost = start_agent("--tracker", tracker.address, "--key", "pi")
        device = connect(tracker=tracker.address, key="pi")
        (inputs,) = seeded(artifact.manifest, 1)
        with device.open(artifact, 1) as executor:
            timer = threading.Timer(0.3, lost.kill)
            timer.start()
            with pytest.raises(DeviceError, match=r"run: .*hung up|the board ended"):
                executor.times_ms(inputs, MANY)
            timer.join()
        start_agent("--tracker", tracker.address, "--key", "pi")
        same_as_here(artifact, device)

    def test_a_client_that_is_killed_leaves_the_board_free(
        self, start_tracker, start_agent, artifact: Artifact
    ):
        tracker = start_tracker()
        start_agent("--tracker", tracker.address, "--key", "pi")
        device = connect(tracker=tracker.address, key="pi")
        session = device.session()
        session._relay._process.kill()  # all that holds the connection
        same_as_here(artifact, device)
        session.close()


def has_no_children(process: psutil.Process) -> bool:
    return not process.children()


@pytest.mark.slow
def test_three_boards_and_six_clients_for_two_hundred_sessions(
    start_tracker, start_agent, artifact: Artifact
):
    """Every session gets a board to itself and the right answer; nothing is left behind."""
    tracker = start_tracker()
    agents = [start_agent("--tracker", tracker.address, "--key", "pi") for _ in range(3)]
    wait_until(lambda: len(state_of(tracker).boards) == 3)
    before = [psutil.Process(agent.pid).num_fds() for agent in agents]
    (inputs,) = seeded(artifact.manifest, 1)
    device = connect(tracker=tracker.address, key="pi", timeout_s=120)
    with device.open(artifact, 1) as executor:
        (expected,) = executor.run(inputs).values()
    jobs = iter(range(200))
    lock = threading.Lock()
    served: dict[int, list[str]] = {}
    problems: list[BaseException] = []

    def client(number: int) -> None:
        mine = served.setdefault(number, [])
        while True:
            with lock:
                if next(jobs, None) is None:
                    return
            try:
                with device.open(artifact, 1) as executor:
                    (found,) = executor.run(inputs).values()
                    np.testing.assert_array_equal(found, expected)
                    mine.append(str(executor.session.address))
            except BaseException as err:  # told to the test's own thread
                problems.append(err)
                return

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(170)
    assert not problems, problems[0]
    assert sum(map(len, served.values())) == 200
    # Nobody starves: a fair queue gives each of six about a sixth.
    assert min(map(len, served.values())) > 200 / 6 / 2
    addresses = [address for mine in served.values() for address in mine]
    assert {addresses.count(agent.address) > 0 for agent in agents} == {True}
    wait_until(lambda: state_of(tracker).free.get("pi") == 3)
    for agent, count in zip(agents, before, strict=True):
        process = psutil.Process(agent.pid)
        wait_until(partial(has_no_children, process))
        assert process.num_fds() <= count


@pytest.fixture
def namespace() -> Iterator[Network]:
    """A board's own network, behind a link that can be unplugged; skips where none can be made."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed: no network of its own for a board")
    name = f"tmn{random.randrange(16**6):06x}"
    number = random.randrange(256), random.randrange(64)
    here, there = (f"10.{200 + number[1] % 50}.{number[0]}.{end}" for end in (1, 2))

    def ip(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    made = ip("netns", "add", name)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    link = name[:9]
    try:
        for words in (
            ("link", "add", f"{link}a", "type", "veth", "peer", "name", f"{link}b", "netns", name),
            ("addr", "add", f"{here}/30", "dev", f"{link}a"),
            ("link", "set", f"{link}a", "up"),
            ("-n", name, "addr", "add", f"{there}/30", "dev", f"{link}b"),
            ("-n", name, "link", "set", f"{link}b", "up"),
            ("-n", name, "link", "set", "lo", "up"),
        ):
            done = ip(*words)
            if done.returncode:
                pytest.skip(f"no link can be made here: ip {' '.join(words)}: {done.stderr}")
        yield Network(name, link, here, there)
    finally:
        ip("netns", "del", name)
        ip("link", "del", f"{link}a")


class Network:
    """A board's side is in a namespace; packets between the two sides can be dropped."""

    def __init__(self, name: str, link: str, here: str, there: str) -> None:
        self.name, self.link, self.here, self.there = name, link, here, there
        self.prefix = ("ip", "netns", "exec", name)

    def unplug(self) -> None:
        """Drop whatever leaves the board: nothing is refused, nothing answered."""
        self._set("down")

    def plug_in(self) -> None:
        self._set("up")

    def _set(self, state: str) -> None:
        # The board's end: this side's stays up, and sends into nothing.
        command = ["ip", "-n", self.name, "link", "set", f"{self.link}b", state]
        subprocess.run(command, check=True)


class TestUnplugged:
    """Packets are dropped, not refused."""

    def _board(self, network, start_agent, key_file: Path, *options: object) -> AgentProcess:
        words = ("--host", network.there, "--auth-key-file", key_file, *options)
        return start_agent(*words, prefix=network.prefix)

    def test_in_the_middle_of_a_run_and_plugged_in_again(
        self, namespace, start_agent, artifact: Artifact, key_file: Path
    ):
        agent = self._board(namespace, start_agent, key_file, "--session-timeout-s", 5)
        address = f"{namespace.there}:{agent.port}"
        device = connect(address, auth_key_file=key_file, timeout_s=LIMIT_S)
        (inputs,) = seeded(artifact.manifest, 1)
        with device.open(artifact, 1) as executor:
            assert executor.run(inputs)
            namespace.unplug()
            with pytest.raises(DeviceTimeoutError, match=r"(no answer within 2 s|link is dead)"):
                executor.run(inputs)
            with pytest.raises(DeviceError, match=r"connect: "):
                device.session()
        namespace.plug_in()
        patient = connect(address, auth_key_file=key_file, timeout_s=60)
        same_as_here(artifact, patient)

    def test_a_board_that_cannot_be_reached_while_the_tracker_can(
        self, namespace, start_agent, start_tracker, artifact: Artifact, key_file: Path
    ):
        tracker = start_tracker(key_file=key_file)
        agent = self._board(namespace, start_agent, key_file)
        namespace.unplug()
        with pytest.raises(DeviceError, match=r"connect: ") as caught:
            connect(
                f"{namespace.there}:{agent.port}", auth_key_file=key_file, timeout_s=LIMIT_S
            ).session()
        assert caught.value.step == "connect"
        namespace.plug_in()
        device = connect(f"{namespace.there}:{agent.port}", auth_key_file=key_file)
        same_as_here(artifact, device)
        assert state_with_key(tracker, key_file).boards == ()


def state_with_key(tracker: TrackerProcess, key_file: Path) -> TrackerState:
    from tvm_mobilenet.rpc.auth import read_key_file

    key = read_key_file(key_file)
    return tracker_state(parse_address(tracker.address), auth_key=key, timeouts=Timeouts())
