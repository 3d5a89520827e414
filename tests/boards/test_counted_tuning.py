"""A search by counted instructions on an emulated board, and what is recorded of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuning import integer_workloads
from tests.tuning.conftest import DEPTHWISE, MATMUL, make_record
from tvm_mobilenet.boards.emulator import start_board, stop_board
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.rpc.board_measurer import BoardMeasurer
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.building import Builder
from tvm_mobilenet.tuning.measurer import Entrant
from tvm_mobilenet.tuning.recorded import best_first
from tvm_mobilenet.tuning.records import plan_to_json, workload_from, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.store import Store, shipped_store
from tvm_mobilenet.tuning.workers import CandidateError

UINT8 = integer_workloads.UINT8

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("emulator")]


@pytest.fixture(scope="module")
def rpi4() -> TargetSpec:
    return load_target("rpi4")


@pytest.fixture(scope="module")
def board(rpi4: TargetSpec, tmp_path_factory: pytest.TempPathFactory, emulator: None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        started = start_board(rpi4)
        try:
            yield started
        finally:
            stop_board(started)


@pytest.fixture(scope="module")
def measurer(rpi4: TargetSpec, board):
    found = BoardMeasurer(rpi4, connect(board.address), cost="instructions")
    yield found
    found.close()


def built(
    target: TargetSpec, folder: Path, workload: Any, plan: dict[str, Any] | None = None
) -> Entrant:
    plan = plan or plan_to_json(Space(workload, target.cpu).start)
    request = {"workload": workload_to_json(workload), "plan": plan}
    library = Builder(target.model_dump_json(by_alias=True), str(folder))(request)["library"]
    return Entrant(request["workload"], plan, library)


WORKLOADS = {
    "matmul": MATMUL,
    "depthwise": DEPTHWISE,
    "int8-product": integer_workloads.PRODUCT,
    "int8-depthwise": integer_workloads.DEPTHWISE,
}


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_a_kernel_counts_the_same_each_time(rpi4, measurer, tmp_path: Path, workload: Any):
    entrant = built(rpi4, tmp_path, workload)
    first, second = measurer.measure(entrant, None), measurer.measure(entrant, 1e-9)
    assert first.counts == second.counts
    assert first.cost == second.cost > measurer.floor(workload)
    weights = rpi4.instruction_weights
    assert weights is not None
    weighted = sum(n * getattr(weights, name) for name, n in first.counts.items()) / 1e6
    assert first.cost == pytest.approx(weighted)
    assert first.error < 1e-4
    assert first.error == 0 or isinstance(workload, type(MATMUL) | type(DEPTHWISE))


def test_a_wrong_result_is_rejected(rpi4, measurer, tmp_path: Path):
    right = built(rpi4, tmp_path, MATMUL)
    bounded = replace(MATMUL, epilogue=replace(MATMUL.epilogue, high=0.5))
    wrong = built(rpi4, tmp_path, bounded)
    with pytest.raises(CandidateError, match="wrong result: off by"):
        measurer.measure(replace(right, library=wrong.library), None)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_shipped_record_counts_what_it_says(rpi4, measurer, tmp_path: Path, dtype: str):
    shipped = [r for r in shipped_store().read("rpi4").trials if r.dtype == dtype]
    record = min(shipped, key=lambda r: workload_from(r.workload).bytes)
    found = measurer.measure(
        built(rpi4, tmp_path, workload_from(record.workload), record.plan), None
    )
    assert found.counts is not None
    assert record.counts is not None
    # The kernel's own are the same; of the runtime's call and its workspace, some tens more or less
    # with what the session had allocated before.
    for name in ("fma", "simd"):
        assert found.counts[name] == record.counts[name]
    assert sum(found.counts.values()) == pytest.approx(sum(record.counts.values()), abs=200)


def test_whole_numbers_must_be_equal(rpi4, measurer, tmp_path: Path):
    product = integer_workloads.PRODUCT
    wrong = built(rpi4, tmp_path, replace(product, requantize=replace(UINT8, high=200)))
    with pytest.raises(CandidateError, match="of the whole numbers differ, by up to 55"):
        measurer.measure(replace(built(rpi4, tmp_path, product), library=wrong.library), None)


def test_one_thread_counts_and_the_target_must_know_its_weights(rpi4, board):
    device = connect(board.address)
    with pytest.raises(UsageError, match="instructions with 4 threads"):
        BoardMeasurer(rpi4, device, threads=4, cost="instructions")
    silent = rpi4.model_copy(update={"instruction_weights": None})
    with pytest.raises(UsageError, match=r"rpi4 says nothing .* \[instruction_weights\]"):
        BoardMeasurer(silent, device, cost="instructions")


def test_a_model_is_tuned_by_counts_and_says_so(
    rpi4, board, measurer, colour_onnx: Path, tmp_path: Path
):
    measurer.close()  # the board serves one session at a time
    report = tune_model(
        colour_onnx,
        target=rpi4,
        cost="instructions",
        device=connect(board.address),
        trials=6,
        logs=tmp_path,
    )
    assert (report.trials, report.unit, report.threads) == (6, "Minstr", 1)
    records = Store(tmp_path).read("rpi4").trials
    assert len([r for r in records if r.verdict != "accepted"]) == 6
    for record in records:
        how = record.conditions
        assert (how.cost, how.is_emulated, how.threads) == ("instructions", True, 1)
        assert how.weights == rpi4.instruction_weights.by_class()
        assert record.counts is None or sum(record.counts.values()) > 0
    measured = make_record(rpi4, ratio=0.99)
    counted = measured.model_copy(update={"conditions": records[0].conditions, "ratio": 0.1})
    assert best_first([counted, measured], 4)[0] is measured
