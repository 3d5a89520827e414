"""MetaSchedule's stock rules: what they are compared by, and that compile never takes them."""

from __future__ import annotations

import importlib.util
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from benchmarks.tuning_curve import at, curve_of
from tests.tuning.conftest import DEPTHWISE, MATMUL, make_record
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.schedule.workload import ConvWorkload, PoolWorkload, SeparableWorkload
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.building import Builder
from tvm_mobilenet.tuning.local import LocalMeasurer
from tvm_mobilenet.tuning.measurer import Entrant
from tvm_mobilenet.tuning.recorded import RecordedPlans
from tvm_mobilenet.tuning.records import plan_from, plan_to_json, workload_to_json
from tvm_mobilenet.tuning.report import TaskReport, TuningReport
from tvm_mobilenet.tuning.stock import check_stock_is_there, stock_tasks
from tvm_mobilenet.tuning.stock_plan import StockPlan
from tvm_mobilenet.tuning.store import Reading, Store
from tvm_mobilenet.tuning.tasks import Task, largest
from tvm_mobilenet.tuning.workers import CandidateError, WorkerProcess

PLAN = StockPlan(trace="[]", packed=(2, 3))
STEM = ConvWorkload(
    batch=1,
    height=16,
    width=16,
    in_channels=3,
    out_channels=8,
    kernel=(3, 3),
    stride=(2, 2),
    padding=(0, 0, 1, 1),
    input_layout="NCHW",
)


def test_a_plan_comes_back_from_a_log_as_it_was():
    assert plan_from(plan_to_json(PLAN)) == PLAN


@pytest.mark.parametrize("family", ["stock", "pointwise"])
@pytest.mark.parametrize("verdict", ["measured", "accepted"])
def test_compile_never_takes_a_stock_record(host: TargetSpec, family: str, verdict: str):
    # Also not one that was passed off as an accepted record of the kernel's own family.
    record = make_record(host, family=family, plan=PLAN, verdict=verdict, ratio=0.1)
    assert RecordedPlans(host, Reading(trials=(record,)))("pointwise", MATMUL) is None


def test_a_pair_is_two_stock_tasks_and_a_pool_none():
    pair = SeparableWorkload(depthwise=DEPTHWISE, pointwise=MATMUL)
    pool = PoolWorkload(batch=1, pixels=49, channels=16)
    tasks, left = stock_tasks(
        [Task("separable", pair, 2), Task("pointwise", MATMUL, 3), Task("pool", pool, 1)]
    )
    assert [(t.family, t.workload, t.calls) for t in tasks] == [
        ("stock", DEPTHWISE, 2),
        ("stock", MATMUL, 5),
    ]
    assert left == ["pool 49x16"]


def test_the_largest_tasks_are_those_with_most_to_compute_in_an_inference():
    small, big = Task("conv", STEM, 1), Task("pointwise", MATMUL, 1)
    often = Task("conv", STEM, 1000)
    assert largest([small, big], 1) == [big]
    assert largest([often, big], 1) == [often]
    assert largest([small, big], None) == [small, big]


def test_a_missing_cost_model_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs xgboost.*pip install 'tvm-mobilenet\[stock\]'"):
        check_stock_is_there()


def test_what_the_rules_are_not_compared_on_is_refused(cli, colour_onnx: Path):
    with pytest.raises(UsageError, match="space stock: it is compared by latency on this machine"):
        tune_model(colour_onnx, space="stock", builders="tcp://127.0.0.1:8786")
    line = cli("tune", str(colour_onnx), "--space", "ours").fails(2)
    assert "--space ours: give computed or stock" in line


def test_a_curve_begins_when_every_kernel_was_measured_and_only_falls(host: TargetSpec):
    began = datetime(2026, 1, 2, tzinfo=timezone.utc)

    def record(workload, seconds: float, cost: float | None):
        return make_record(
            host,
            family="stock",
            workload=workload,
            plan=PLAN,
            verdict="measured" if cost else "rejected",
            cost=cost,
            ratio=None,
            conditions={"date": (began + timedelta(seconds=seconds)).isoformat()},
        )

    def task(workload, calls: int) -> TaskReport:
        return TaskReport(
            name=Task("stock", workload, calls).name,
            calls=calls,
            untuned=None,
            best=None,
            ratio=None,
            floor=0.125,
            trials=1,
            status="compared",
            stopped="",
        )

    report = TuningReport(
        model="m",
        target="host",
        threads=1,
        unit="ms",
        log="",
        tasks=(task(MATMUL, 2), task(STEM, 1)),
        trials=4,
        built=4,
        seconds=40.0,
        spent_before={},
        space="stock",
    )
    records = [
        record(STEM, 30, 1.0),
        record(MATMUL, 10, 4.0),
        record(MATMUL, 20, 3.0),
        record(MATMUL, 40, 5.0),
        record(STEM, 50, None),
        record(STEM, 60, 0.5),
    ]
    curve = curve_of("m", "stock", records, report, began)
    assert curve.points == [(30.0, 7.0), (60.0, 6.5)]
    assert (at(curve, 29), at(curve, 45), at(curve, 61)) == (None, 7.0, 6.5)
    assert (curve.rejected, curve.untuned_ms, curve.floor_ms) == (1, None, 0.375)


def _propose(host: TargetSpec, workload) -> list[dict]:
    settings = {
        "target": host.model_dump_json(by_alias=True),
        "threads": 1,
        "population": 4,
        "batch": 1,
        "processors": 1,
    }
    rules = WorkerProcess("tvm_mobilenet.tuning.stock_rules:StockRules", settings)
    try:
        rules.request(
            {"op": "begin", "task": "t", "workload": workload_to_json(workload)}, timeout_s=300
        )
        found: list[dict] = rules.request({"op": "propose", "task": "t"}, 300)["candidates"]
        rules.request({"op": "learn", "task": "t", "costs": [0.5] * len(found)}, 300)
        return found
    finally:
        rules.close()


@pytest.mark.slow
@pytest.mark.parametrize("workload", [MATMUL, DEPTHWISE, STEM], ids=["matmul", "depthwise", "stem"])
def test_a_stock_kernel_computes_its_workload_and_a_wrong_one_is_rejected(
    host: TargetSpec, tmp_path: Path, workload
):
    pytest.importorskip("xgboost", reason="MetaSchedule's cost model: the extra `stock`")
    (found,) = _propose(host, workload)
    build = Builder(host.model_dump_json(by_alias=True), str(tmp_path))
    library = build({"module": found["module"]})["library"]
    plan = StockPlan(trace=found["trace"], packed=tuple(found["packed"]))
    entrant = Entrant(workload_to_json(workload), plan_to_json(plan), library)
    measurer = LocalMeasurer(host, threads=1)
    try:
        figures = measurer.measure(entrant, None)
        assert figures.cost > 0
        assert figures.error < 1e-4
        unpacked = plan_to_json(StockPlan(trace=found["trace"]))
        with pytest.raises(CandidateError):
            measurer.measure(Entrant(entrant.workload, unpacked, library), None)
    finally:
        measurer.close()


@pytest.mark.slow
def test_a_search_by_the_stock_rules_records_and_accepts_nothing(colour_onnx: Path, tmp_path: Path):
    pytest.importorskip("xgboost", reason="MetaSchedule's cost model: the extra `stock`")
    report = tune_model(
        colour_onnx, space="stock", trials=8, threads=1, most_tasks=1, logs=tmp_path
    )
    assert report.space == "stock"
    assert report.trials == 8
    assert report.best > 0
    trials = Store(tmp_path).read("host").trials
    assert {record.family for record in trials} == {"stock"}
    assert "accepted" not in {record.verdict for record in trials}
    with pytest.raises(SpecError, match="trials 0"):
        tune_model(colour_onnx, space="stock", trials=0)
