"""A search's candidates on boards: this machine's own agent stands for one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.test_faults import state_of, wait_until
from tests.tuning.conftest import MATMUL, c_library
from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import DeviceError, DeviceUnreachableError, UsageError
from tvm_mobilenet.facts import BoardFacts, CpuFacts
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.rpc import board_kernels
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.board_kernels import BoardKernels
from tvm_mobilenet.rpc.board_measurer import BoardMeasurer, count_boards
from tvm_mobilenet.rpc.deadline import Timeouts
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.building import Builder
from tvm_mobilenet.tuning.measurer import Entrant
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.store import Store
from tvm_mobilenet.tuning.workers import CandidateError

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def host() -> TargetSpec:
    return load_target("host")


def build(target: TargetSpec, folder: Path, workload: Any) -> Entrant:
    plan = plan_to_json(Space(workload, target.cpu).start)
    request = {"workload": workload_to_json(workload), "plan": plan}
    library = Builder(target.model_dump_json(by_alias=True), str(folder))(request)["library"]
    return Entrant(request["workload"], plan, library)


@pytest.fixture(scope="module")
def built(host: TargetSpec, tmp_path_factory: pytest.TempPathFactory) -> Entrant:
    return build(host, tmp_path_factory.mktemp("build"), MATMUL)


@pytest.fixture(scope="module")
def wrong(host: TargetSpec, tmp_path_factory: pytest.TempPathFactory) -> Entrant:
    """Computes something else than what it says it does."""
    bounded = replace(MATMUL, epilogue=replace(MATMUL.epilogue, high=0.5))
    other = build(host, tmp_path_factory.mktemp("build"), bounded)
    return replace(other, workload=workload_to_json(MATMUL))


@pytest.fixture
def measurer(host: TargetSpec, agent) -> Iterator[BoardMeasurer]:
    found = BoardMeasurer(host, connect(agent.address, timeout_s=60), threads=1, patience_s=1)
    yield found
    found.close()


@needs_compiler
def test_a_candidate_is_measured_and_one_that_goes_wrong_costs_itself_alone(
    measurer: BoardMeasurer, built: Entrant, wrong: Entrant, tmp_path: Path
):
    found = measurer.measure(built, None)
    assert found.cost > 0
    assert found.repeats > 0
    assert found.error < 1e-4
    assert measurer.facts["is_emulated"] is False
    assert measurer.facts["cost"] == "latency"
    with pytest.raises(CandidateError, match="wrong result: off by"):
        measurer.measure(wrong, None)
    with pytest.raises(CandidateError, match="wrong result"):
        measurer.contest([built, built, wrong], rounds=3, threads=1, seed=1)
    times = measurer.contest([built, built], rounds=3, threads=1, seed=1)
    assert [len(series) for series in times] == [3, 3]
    crash = replace(built, library=c_library(tmp_path, "*(volatile int *)0 = 1; return 0;"))
    with pytest.raises(CandidateError, match=r"it crashed on the board: .*SIGSEGV"):
        measurer.measure(crash, None)
    failing = replace(built, library=c_library(tmp_path, "return -1;"))
    with pytest.raises(CandidateError):
        measurer.measure(failing, None)
    broken = replace(built, library="bm8gbGlicmFyeQ==")
    with pytest.raises(CandidateError, match="the board answers"):
        measurer.measure(broken, None)
    assert measurer.measure(built, None).error < 1e-4


@needs_compiler
def test_a_candidate_that_hangs_is_given_up_and_the_next_is_measured(
    host: TargetSpec, agent, built: Entrant, tmp_path: Path
):
    measurer = BoardMeasurer(host, connect(agent.address, timeout_s=5), threads=1)
    try:
        assert measurer.measure(built, None).cost > 0
        hang = replace(built, library=c_library(tmp_path, "for (;;); return 0;"))
        with pytest.raises(CandidateError, match="it hung: no answer within 5 s"):
            measurer.measure(hang, None)
        assert measurer.measure(built, None).cost > 0
    finally:
        measurer.close()


def test_the_last_board_that_stays_away_ends_the_search(
    measurer: BoardMeasurer, agent, built: Entrant
):
    assert measurer.measure(built, None).cost > 0
    agent.kill()
    with pytest.raises(DeviceUnreachableError, match="it did not come back within 1 s"):
        measurer.measure(built, None)


class KillAt(NoProgress):
    """Kills a board when the search has come so far."""

    def __init__(self, agent: Any, at: int) -> None:
        self.agent, self.left = agent, at

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            self.agent.kill()


@pytest.mark.slow
def test_boards_under_one_key_share_the_work_and_one_may_go(
    host: TargetSpec, start_tracker, start_agent, colour_onnx: Path, tmp_path: Path
):
    tracker = start_tracker()
    agents = [start_agent("--tracker", tracker.address, "--key", "pi") for _ in range(2)]
    wait_until(lambda: len(state_of(tracker).boards) == 2)
    device = connect(tracker=tracker.address, key="pi", timeout_s=30)
    assert count_boards(device) == 2
    with pytest.raises(DeviceError, match="has no board 'pie'; it has: pi"):
        count_boards(connect(tracker=tracker.address, key="pie"))
    report = tune_model(
        colour_onnx,
        target=host,
        device=device,
        threads=1,
        trials=12,
        logs=tmp_path / "logs",
        progress=KillAt(agents[0], 5),
    )
    assert report.trials == 12
    records = Store(tmp_path / "logs").read("host").trials
    assert len([r for r in records if r.verdict == "measured"]) == 12
    assert not [r.note for r in records if r.note]


def test_a_real_board_counts_no_instructions(host: TargetSpec, agent, colour_onnx, tmp_path):
    weighty = host.model_copy(
        update={"instruction_weights": load_target("rpi4").instruction_weights}
    )
    with pytest.raises(UsageError, match="is a real one and counts none; give --emulated"):
        tune_model(
            colour_onnx,
            target=weighty,
            cost="instructions",
            device=connect(agent.address),
            logs=tmp_path,
        )


def test_a_board_of_another_machine_is_refused(agent, built: Entrant):
    measurer = BoardMeasurer(load_target("rpi4"), connect(agent.address), threads=1, patience_s=0)
    try:
        with pytest.raises(DeviceError, match="candidates are built for aarch64"):
            measurer.measure(built, None)
    finally:
        measurer.close()


def test_what_a_throttling_board_measures_is_repeated_and_then_marked(
    agent, built: Entrant, monkeypatch: pytest.MonkeyPatch
):
    clocks: list[float] = []

    def facts(session: Any) -> BoardFacts:
        clock = clocks.pop(0) if clocks else 1500.0
        return BoardFacts(cpus=(CpuFacts(cpu=0, cur_mhz=clock),), temperature_c=60.0)

    monkeypatch.setattr(board_kernels, "_facts", facts)
    kernels = BoardKernels(
        address=agent.address,
        tracker=None,
        key=None,
        auth_key="",
        timeouts=asdict(Timeouts()),
        machine=host_machine(),
        uses_opencl=False,
        threads=1,
        cpus=(),
        cost="latency",
        seed=0,
        cold_bytes=1 << 20,
        rest_s=0.0,
    )
    request = {"op": "measure", "threads": 1, **asdict(built)}
    with closing(kernels):
        opened = 1500.0
        clocks += [opened, 1500.0, 600.0, 1500.0, 1500.0]
        assert kernels(request)["throttled"] == ""
        assert not clocks
        clocks += [1500.0, 600.0] * 3
        marked = kernels(request)
    assert "fell from 1500 to 600 MHz" in marked["throttled"]
    assert (marked["clock_mhz"], marked["temperature_c"]) == (600.0, 60.0)
