from __future__ import annotations

import base64
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tests.rpc.processes import AgentProcess
from tvm_mobilenet.boards.archive import AGENT
from tvm_mobilenet.errors import DeviceError, UsageError
from tvm_mobilenet.opencl.building import LIBRARY
from tvm_mobilenet.opencl.runtime import describe
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.board_measurer import BoardMeasurer
from tvm_mobilenet.schedule.workload import Epilogue, MatmulWorkload
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.building import Builder
from tvm_mobilenet.tuning.measurer import Entrant
from tvm_mobilenet.tuning.opencl_measurer import OpenCLMeasurer
from tvm_mobilenet.tuning.records import plan_to_json, workload_to_json
from tvm_mobilenet.tuning.target_space import space_for
from tvm_mobilenet.tuning.workers import CandidateError
from tvm_mobilenet.workflow import compile_model

pytestmark = pytest.mark.opencl

PRODUCT = MatmulWorkload(rows=33, depth=24, columns=20, epilogue=Epilogue(bias=True, low=0.0))


@pytest.fixture(params=["here", "on a board"])
def measurer(device, request):
    target = load_target("opencl-generic")
    found: OpenCLMeasurer | BoardMeasurer
    if request.param == "here":
        found = OpenCLMeasurer(target)
    else:
        agent = request.getfixturevalue("opencl_agent")
        found = BoardMeasurer(target, connect(agent.address, timeout_s=60), patience_s=1)
    yield found
    found.close()


def space_of_product():
    return space_for(PRODUCT, load_target("opencl-generic"))


def entrant(folder, plan, library=None):
    workload, data = workload_to_json(PRODUCT), plan_to_json(plan)
    if library is None:
        target = load_target("opencl-generic").model_dump_json(by_alias=True)
        library = Builder(target, str(folder))({"workload": workload, "plan": data})["library"]
    return Entrant(workload, data, library)


def test_candidates_are_checked_and_timed_on_the_device(measurer, tmp_path):
    space = space_of_product()
    first = entrant(tmp_path, space.start)
    other = entrant(tmp_path, space.neighbours(space.start)[0])
    figures = measurer.measure(first, None)
    assert figures.cost > 0
    assert figures.error < 1e-5
    times = measurer.contest([first, other], rounds=3, threads=1, seed=0)
    assert [len(each) for each in times] == [3, 3]
    assert describe().devices[0].name in measurer.facts["device"]


def test_a_kernel_that_computes_something_else_is_rejected(measurer, tmp_path):
    space = space_of_product()
    built = entrant(tmp_path, space.start)
    # Weights packed for another plan than the one that the kernel was built from.
    other = next(p for p in space.neighbours(space.start) if p.weights != space.start.weights)
    with pytest.raises(CandidateError, match="wrong result"):
        measurer.measure(entrant(tmp_path, other, built.library), None)
    damaged = base64.b64encode(b"no library").decode()
    with pytest.raises(CandidateError):
        measurer.measure(entrant(tmp_path, space.start, damaged), None)
    assert measurer.measure(built, None).error < 1e-5


@pytest.mark.parametrize("on_board", [False, True], ids=["here", "on a board"])
def test_tuned_plans_reach_the_library(on_board, device, opencl_agent, colour_onnx, tmp_path):
    logs = tmp_path / "logs"
    report = tune_model(
        colour_onnx,
        target="opencl-generic",
        trials=10,
        logs=logs,
        builders=1,
        device=connect(opencl_agent.address, timeout_s=60) if on_board else None,
    )
    assert report.trials == 10
    artifact = compile_model(
        colour_onnx, out=tmp_path / "model", target="opencl-generic", logs=logs
    )
    from tvm_mobilenet.verify import verify

    assert verify(artifact.path).is_within


def test_the_gpu_of_a_board_is_not_tuned_for_here():
    with pytest.raises(UsageError, match=r"rk3399-mali: its GPU is on a board; give --tracker"):
        tune_model("mobilenet_v1_0.25_128", target="rk3399-mali", trials=1)


def test_nothing_counts_a_gpus_instructions(opencl_agent):
    device = connect(opencl_agent.address)
    with pytest.raises(UsageError, match="opencl-generic is for a GPU"):
        BoardMeasurer(load_target("opencl-generic"), device, cost="instructions")


def test_a_board_that_is_something_else_ends_the_search_at_once(opencl_agent):
    """It is not waited for as a board is that was lost: no candidate will ever run there."""
    board = connect(opencl_agent.address, timeout_s=60)
    measurer = BoardMeasurer(load_target("rk3399-mali"), board, patience_s=1000)
    try:
        with pytest.raises(DeviceError, match="candidates are built for aarch64") as hit:
            _ = measurer.facts
        assert hit.value.exit_code == 4
    finally:
        measurer.close()


def test_a_board_without_the_runtime_ends_the_search_at_once(agent_folder: Path, tmp_path: Path):
    folder = shutil.copytree(agent_folder, tmp_path / "board")
    (folder / "sidelibs" / LIBRARY).unlink()
    with closing(AgentProcess(folder / AGENT, tmp_path)) as agent:
        board = connect(agent.address, timeout_s=60)
        measurer = BoardMeasurer(load_target("opencl-generic"), board, patience_s=1000)
        with closing(measurer), pytest.raises(DeviceError, match="without an OpenCL runtime"):
            _ = measurer.facts
