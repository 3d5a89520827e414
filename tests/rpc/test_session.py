"""Boards that answer: our agent, and TVM's own servers and trackers on either side."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.rpc.processes import AgentProcess, StockTracker
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import (
    ArtifactError,
    DeviceError,
    DeviceTimeoutError,
    DeviceUnreachableError,
    SpecError,
    UsageError,
)
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.measure import measure
from tvm_mobilenet.rpc.address import parse_address
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.status import agent_status
from tvm_mobilenet.verify.report import verify

MANY = 1_000_000
"""Inferences, the most that the agent times in one call: some seconds even of a small network."""


def same_as_here(artifact: Artifact, device) -> None:
    (inputs,) = seeded(artifact.manifest, 1)
    with LocalExecutor(artifact, 1) as here:
        expected = here.run(inputs)
    with device.open(artifact, 1) as there:
        found = there.run(inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


class TestAgent:
    def test_it_computes_what_this_machine_does(self, agent: AgentProcess, artifact: Artifact):
        same_as_here(artifact, connect(agent.address))

    def test_several_inputs_in_one_session(self, agent: AgentProcess, artifact: Artifact):
        with LocalExecutor(artifact, 1) as here, connect(agent.address).open(artifact, 1) as there:
            for inputs in seeded(artifact.manifest, 5):
                expected, found = here.run(inputs), there.run(inputs)
                for name in expected:
                    np.testing.assert_array_equal(found[name], expected[name])

    def test_parity_and_drift(self, agent: AgentProcess, colour_dir: Path):
        report = verify(colour_dir, inputs=2, drift=True, device=connect(agent.address), threads=1)
        assert report.is_within
        assert report.drift is not None
        assert report.drift.first_departed is None
        compared = [layer for layer in report.drift.layers if layer.relative_l2 is not None]
        assert len(compared) >= 3

    def test_layers_are_those_of_this_machine(self, agent: AgentProcess, artifact: Artifact):
        (inputs,) = seeded(artifact.manifest, 1)
        with LocalExecutor(artifact, 1) as here:
            expected = here.layer_outputs(inputs)
        with connect(agent.address).open(artifact, 1) as there:
            found = there.layer_outputs(inputs)
            again = there.layer_outputs(inputs)
        assert len(found) == len(expected) == len(artifact.manifest.layers)
        for ours, theirs, repeated in zip(expected, found, again, strict=True):
            np.testing.assert_array_equal(theirs, ours)
            np.testing.assert_array_equal(repeated, ours)

    def test_a_measurement_is_kept_with_the_board_it_was_taken_on(
        self, agent: AgentProcess, colour_dir: Path
    ):
        found = measure(
            colour_dir,
            threads=1,
            warmup=2,
            repeat=9,
            profile=True,
            device=connect(agent.address),
            cool_down_s=0.01,
        )
        assert len(found.timing.warmup_ms) == 2
        assert len(found.timing.values_ms) == 9
        assert all(value > 0 for value in found.timing.values_ms)
        assert found.memory is not None
        assert 0 < found.memory.added_bytes < 64 << 20
        board = found.board
        assert board is not None
        assert board.address == agent.address
        assert board.has_agent
        assert board.threads == found.threads == 1
        assert board.cool_down_s == 0.01
        assert board.before is not None
        assert board.after is not None
        assert board.before.memory_total_mib == pytest.approx(
            psutil.virtual_memory().total / (1 << 20), rel=0.01
        )
        assert found.host.cpus == len(board.before.cpus)
        profile = found.profile
        assert profile is not None
        assert len(profile.layers) > 0
        assert profile.sum_ms == pytest.approx(sum(layer.median_ms for layer in profile.layers))
        assert "computed, not measured" in (profile.peak_note or "")
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["board"]["before"]["machine"] == board.before.machine

    def test_processors_are_chosen_and_recorded(self, agent: AgentProcess, artifact: Artifact):
        last = max(psutil.Process().cpu_affinity())
        with connect(agent.address).open(artifact, cpus=(last,)) as executor:
            assert executor.threads == 1
            assert executor.cpus == (last,)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"threads": 0}, "threads 0: give 1 or more"),
            ({"threads": 4096}, r"threads 4096: the board offers \d+ processors"),
            ({"cpus": (4095,)}, r"cpus 4095: the board has 0"),
            ({"cpus": (0,), "threads": 2}, "threads 2: the board offers 1 processors; give 1"),
        ],
    )
    def test_what_the_board_does_not_have(self, agent, artifact: Artifact, options, says: str):
        with pytest.raises(SpecError, match=says):
            connect(agent.address).open(artifact, **options)

    def test_a_library_for_another_machine(self, agent: AgentProcess, tiny_for_arm: Artifact):
        with pytest.raises(ArtifactError, match=r"for aarch64 .*the board is .*--target"):
            connect(agent.address).open(tiny_for_arm)
        assert agent_status(parse_address(agent.address)).state == "free"

    def test_a_library_that_does_not_load(self, agent, artifact: Artifact, tmp_path: Path):
        (tmp_path / "model.so").write_bytes(b"\x7fELF" + bytes(4096))
        broken = Artifact(tmp_path, artifact.manifest)
        with pytest.raises(ArtifactError, match="its library cannot be loaded by device"):
            connect(agent.address).open(broken)
        same_as_here(artifact, connect(agent.address))

    def test_a_library_that_crashes_as_it_is_loaded(self, agent, artifact, tmp_path: Path):
        (tmp_path / "model.so").write_bytes(artifact.library_path.read_bytes()[:4096])
        broken = Artifact(tmp_path, artifact.manifest)
        with pytest.raises(DeviceError, match=r"load: the board ended the session: .*SIGBUS"):
            connect(agent.address).open(broken)
        same_as_here(artifact, connect(agent.address))

    def test_a_wrong_input_ends_nothing(self, agent: AgentProcess, artifact: Artifact):
        with connect(agent.address).open(artifact, 1) as executor:
            with pytest.raises(SpecError, match="missing"):
                executor.run({})
            (inputs,) = seeded(artifact.manifest, 1)
            assert executor.run(inputs)

    def test_the_boards_reason_comes_with_the_error(self, agent: AgentProcess, artifact: Artifact):
        (inputs,) = seeded(artifact.manifest, 1)
        with connect(agent.address).open(artifact, 1) as executor:
            (child,) = psutil.Process(agent.pid).children()
            child.send_signal(11)
            with pytest.raises(DeviceError, match=r"board ended the session: .*SIGSEGV") as caught:
                executor.run(inputs)
            assert caught.value.exit_code == 4
            assert caught.value.device == agent.address
            with pytest.raises(DeviceError, match="SIGSEGV"):
                executor.run(inputs)
        same_as_here(artifact, connect(agent.address))

    def test_a_session_that_takes_too_long_is_ended_by_the_board(
        self, start_agent, artifact: Artifact
    ):
        agent = start_agent("--session-timeout-s", 1)
        (inputs,) = seeded(artifact.manifest, 1)
        device = connect(agent.address)
        with (
            device.open(artifact, 1) as executor,
            pytest.raises(DeviceError, match=r"run: the board ended the session: .*time limit"),
        ):
            executor.times_ms(inputs, MANY)
        same_as_here(artifact, device)

    def test_a_board_that_is_held_says_by_whom(self, agent: AgentProcess, artifact: Artifact):
        heard: list[str] = []
        session = connect(agent.address).session()
        try:
            with pytest.raises(DeviceTimeoutError, match=r"it is held by \S+@\S+:\d+") as caught:
                connect(agent.address, timeout_s=2.5, notify=heard.append).open(artifact)
            assert caught.value.step == "queue"
            assert heard
        finally:
            session.close()
        same_as_here(artifact, connect(agent.address))

    def test_no_process_or_descriptor_of_a_session_stays_here(self, agent: AgentProcess):
        device = connect(agent.address)
        device.session().close()
        here = psutil.Process()
        before = here.num_fds(), len(here.children())
        for _ in range(5):
            device.session().close()
        assert (here.num_fds(), len(here.children())) == before

    def test_with_a_key(self, start_agent, artifact: Artifact, key_file: Path, tmp_path: Path):
        agent = start_agent("--auth-key-file", key_file)
        same_as_here(artifact, connect(agent.address, auth_key_file=key_file))
        other = tmp_path / "other.key"
        other.write_text("quite another key than that")
        other.chmod(0o600)
        for wrong in (None, other):
            with pytest.raises(DeviceUnreachableError, match="key"):
                connect(agent.address, auth_key_file=wrong, timeout_s=5).open(artifact)
        same_as_here(artifact, connect(agent.address, auth_key_file=key_file))


class TestStockServer:
    def test_it_computes_what_this_machine_does(self, stock_server, artifact: Artifact):
        same_as_here(artifact, connect(stock_server.address))

    def test_it_is_timed_and_says_nothing_of_itself(self, stock_server, colour_dir: Path):
        device = connect(stock_server.address)
        found = measure(colour_dir, threads=1, warmup=1, repeat=5, device=device, cool_down_s=0)
        assert len(found.timing.values_ms) == 5
        assert found.memory is None
        assert found.board is not None
        assert not found.board.has_agent
        assert "stock RPC server" in found.warnings[0]
        assert json.loads(json.dumps(found.to_dict()))["memory"] is None

    def test_what_needs_the_agent_says_so(self, stock_server, colour_dir: Path, artifact):
        device = connect(stock_server.address)
        with pytest.raises(DeviceError, match=r"time_layers: .*stock RPC server.* board bundle"):
            measure(colour_dir, profile=True, device=device)
        with pytest.raises(DeviceError, match=r"capture_layers: .*stock RPC server"):
            verify(colour_dir, inputs=1, drift=True, device=device)
        with pytest.raises(DeviceError, match="cannot be told which processors"):
            device.open(artifact, cpus=(0,))
        same_as_here(artifact, device)

    def test_a_key_that_it_does_not_know(self, stock_server, artifact: Artifact):
        with pytest.raises(DeviceUnreachableError, match=r"handshake: .*refuses the key"):
            connect(stock_server.address, key="other").open(artifact)
        same_as_here(artifact, connect(stock_server.address))


class TestTracker:
    def test_our_agent_and_our_tracker(self, start_tracker, start_agent, artifact: Artifact):
        tracker = start_tracker()
        start_agent("--tracker", tracker.address, "--key", "pi")
        same_as_here(artifact, connect(tracker=tracker.address, key="pi"))

    def test_a_stock_server_at_our_tracker(
        self, start_tracker, start_stock_server, artifact: Artifact
    ):
        tracker = start_tracker()
        start_stock_server("--tracker", tracker.address, "--key", "stock")
        device = connect(tracker=tracker.address, key="stock")
        same_as_here(artifact, device)
        same_as_here(artifact, device)

    def test_our_agent_at_a_stock_tracker(
        self, stock_tracker: StockTracker, start_agent, artifact: Artifact
    ):
        start_agent("--tracker", stock_tracker.address, "--key", "pi")
        same_as_here(artifact, connect(tracker=stock_tracker.address, key="pi"))

    def test_a_stock_client_at_our_tracker(self, start_tracker, start_agent):
        from tvm import rpc

        tracker = start_tracker()
        start_agent("--tracker", tracker.address, "--key", "pi")
        client = rpc.connect_tracker("127.0.0.1", tracker.port)
        session = client.request("pi", session_timeout=30)
        session.upload(bytearray(b"content"), "file.txt")
        assert bytes(session.download("file.txt")) == b"content"
        assert "server:pi" in client.text_summary()
        del session
        client.close()

    def test_a_key_file_that_cannot_be_used_is_refused_before_anything_is_sent(self, tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            connect("127.0.0.1:1", auth_key_file=tmp_path / "none")

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({}, "neither were given"),
            ({"address": "a:1", "tracker": "b:2", "key": "pi"}, "both were given"),
            ({"tracker": "b:2"}, "of which boards"),
            ({"address": "a"}, "device 'a': give HOST:PORT"),
            ({"address": "a:1", "timeout_s": 0}, "timeout-s 0"),
        ],
    )
    def test_a_request_that_makes_no_sense(self, options, says: str):
        with pytest.raises((UsageError, SpecError), match=says):
            connect(**options)

    def test_two_boards_of_one_key_serve_side_by_side(
        self, start_tracker, start_agent, artifact: Artifact
    ):
        tracker = start_tracker()
        for _ in range(2):
            start_agent("--tracker", tracker.address, "--key", "pi")
        device = connect(tracker=tracker.address, key="pi")
        with device.open(artifact, 1) as one, device.open(artifact, 1) as other:
            assert one.session.address != other.session.address

    def test_clients_take_turns(self, start_tracker, start_agent, artifact: Artifact):
        tracker = start_tracker()
        start_agent("--tracker", tracker.address, "--key", "pi")
        device = connect(tracker=tracker.address, key="pi")
        order: list[int] = []
        heard: list[str] = []
        waiting = connect(tracker=tracker.address, key="pi", notify=heard.append)

        def wait(index: int) -> None:
            session = waiting.session()
            order.append(index)
            session.close()

        held = device.session()
        threads = []
        from tvm_mobilenet.rpc.tracker_client import tracker_state

        for index in range(3):
            threads.append(threading.Thread(target=wait, args=(index,)))
            threads[-1].start()
            while len(tracker_state(parse_address(tracker.address)).waiting) <= index:
                time.sleep(0.02)
        while not heard:
            time.sleep(0.02)
        held.close()
        for thread in threads:
            thread.join(60)
        assert order == [0, 1, 2]
        assert "is held by" in heard[0]


@pytest.fixture
def tiny_for_arm(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact, with a manifest that says it is for AArch64."""
    library = artifact.manifest.library.model_copy(update={"machine": "aarch64"})
    return Artifact(artifact.path, artifact.manifest.model_copy(update={"library": library}))


def test_nothing_listens_there(artifact: Artifact):
    with pytest.raises(
        DeviceUnreachableError, match=r"connect: .*refused; is it switched"
    ) as caught:
        connect("127.0.0.1:1").open(artifact)
    assert caught.value.step == "connect"


def test_what_listens_there_is_no_board(artifact: Artifact, start_tracker):
    with pytest.raises(DeviceUnreachableError, match="handshake"):
        connect(start_tracker().address, timeout_s=5).open(artifact)
