from __future__ import annotations

import base64

import pytest

from tvm_mobilenet.errors import UsageError
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


@pytest.fixture
def measurer(device):
    found = OpenCLMeasurer(load_target("opencl-generic"))
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
    assert measurer.facts["device"]


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


def test_tuned_plans_reach_the_library(device, colour_onnx, tmp_path):
    logs = tmp_path / "logs"
    report = tune_model(colour_onnx, target="opencl-generic", trials=10, logs=logs, builders=1)
    assert report.trials == 10
    artifact = compile_model(
        colour_onnx, out=tmp_path / "model", target="opencl-generic", logs=logs
    )
    from tvm_mobilenet.verify import verify

    assert verify(artifact.path).is_within


def test_the_gpu_of_a_board_is_not_tuned_for_here():
    with pytest.raises(UsageError, match=r"rk3399-mali: its GPU is on a board"):
        tune_model("mobilenet_v1_0.25_128", target="rk3399-mali", trials=1)
