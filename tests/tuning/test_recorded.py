from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_compiler import Graph
from tests.tuning.conftest import DEPTHWISE, MATMUL, make_record
from tvm_mobilenet.schedule.separable import ApartPlan
from tvm_mobilenet.schedule.workload import SeparableWorkload
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.recorded import RecordedPlans, read_stores
from tvm_mobilenet.tuning.records import Plan, plan_to_json, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.store import Reading, Store
from tvm_mobilenet.tuning.tasks import model_tasks
from tvm_mobilenet.workflow import compile_model


def lookup(host: TargetSpec, *records: Any) -> Plan | None:
    return RecordedPlans(host, Reading(tuple(records)))("pointwise", MATMUL)


def others(host: TargetSpec, count: int) -> list[Any]:
    space = Space(MATMUL, host.cpu)
    return space.neighbours(space.start)[1 : count + 1]


def test_the_greatest_gain_over_the_computed_plan_is_taken(host: TargetSpec):
    a, b, c = others(host, 3)
    best = make_record(host, plan=b, ratio=0.8, cost=3.0)
    records = [make_record(host, plan=a, ratio=0.9), best, make_record(host, plan=c, ratio=0.85)]
    assert lookup(host, *records) == b
    assert lookup(host, *records[::-1]) == b


@pytest.mark.parametrize("verdict", ["measured", "rejected"])
def test_only_what_won_is_taken(host: TargetSpec, verdict: str):
    assert lookup(host, make_record(host, verdict=verdict)) is None


@pytest.mark.parametrize(
    "conditions",
    [
        {"is_emulated": True},
        {"cost": "instructions"},
        {"cost": "instructions", "is_emulated": True},
    ],
)
def test_what_was_not_timed_never_comes_before_what_was(
    host: TargetSpec, conditions: dict[str, Any], caplog
):
    a, b = others(host, 2)
    unsure = make_record(host, plan=a, ratio=0.1, conditions=conditions)
    assert lookup(host, unsure, make_record(host, plan=b, ratio=1.0)) == b
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert lookup(host, unsure) == a
    assert "no time was measured" in caplog.text


def test_as_many_threads_as_the_target_has_cores_come_first(host: TargetSpec):
    a, b = others(host, 2)
    one = make_record(host, plan=a, ratio=0.5, conditions={"threads": host.cpu.cores + 1})
    assert lookup(host, one, make_record(host, plan=b, ratio=0.9)) == b
    assert lookup(host, one) == a


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conditions": {"tvm": "0.1"}}, "made with TVM 0.1"),
        ({"writer": 0}, "kernel writers 0"),
        ({"plan_json": {"kind": "matmul"}}, "not one of this version"),
        ({"row_tile": 5000}, "row_tile 5000 is not in 1 to 49"),
        ({"lanes": 1}, "lanes is 1"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_reason(
    host: TargetSpec, changes: dict[str, Any], says: str, caplog
):
    if "plan_json" in changes:
        bad = make_record(host).model_copy(update={"plan": changes["plan_json"]})
    elif "row_tile" in changes or "lanes" in changes:
        bad = make_record(host, plan=replace(Space(MATMUL, host.cpu).start, **changes))
    else:
        bad = make_record(host, **changes)
    (good,) = others(host, 1)
    with caplog.at_level(logging.WARNING):
        assert lookup(host, bad, make_record(host, plan=good, ratio=1.0)) == good
        assert lookup(host, bad) is None
    assert says in caplog.text


def test_another_targets_record_is_passed_over(host: TargetSpec, caplog):
    assert lookup(host, make_record(host, fingerprint="0" * 64)) is None
    assert caplog.text == ""


def test_this_machine_is_served_from_a_log_under_another_name(host: TargetSpec, tmp_path: Path):
    record = make_record(host).model_copy(update={"target": "mine"})
    Store(tmp_path).append("mine", [record])
    assert record in read_stores(host, tmp_path).trials
    assert record not in read_stores(load_target("rpi4"), tmp_path).trials


def tuned_log(onnx: Path, host: TargetSpec, folder: Path) -> int:
    """Write a record for every kernel of a model, each another plan than the computed one."""
    records = []
    for task in model_tasks(onnx, host).tasks:
        space = Space(task.workload, host.cpu)
        plans = [p for p in space.seeds() + space.neighbours(space.start) if p != space.start]
        records.append(make_record(host, family=task.family, workload=task.workload, plan=plans[0]))
    Store(folder).append("host", records)
    return len(records)


def test_compile_uses_the_records_unless_told_not_to(
    colour_onnx: Path, host: TargetSpec, tmp_path: Path
):
    from tvm_mobilenet.verify.report import verify

    assert tuned_log(colour_onnx, host, tmp_path / "logs") == 4
    tuned = compile_model(colour_onnx, out=tmp_path / "tuned", logs=tmp_path / "logs").manifest
    # The pair is recorded as two kernels where one was computed, or the other way round.
    assert tuned.schedule.tuned == len(tuned.layers) - tuned.schedule.fallback
    assert tuned.schedule.computed == 0
    assert verify(tmp_path / "tuned", inputs=2).is_within
    plain = compile_model(
        colour_onnx, out=tmp_path / "plain", logs=tmp_path / "logs", use_logs=False
    ).manifest
    assert plain.schedule.tuned == 0
    assert plain.schedule.computed > 0
    schedules = [[layer.schedule for layer in m.layers] for m in (tuned, plain)]
    assert schedules[0] != schedules[1]


def test_a_pair_recorded_apart_becomes_two_kernels(
    colour_onnx: Path, host: TargetSpec, tmp_path: Path
):
    (task,) = [t for t in model_tasks(colour_onnx, host).tasks if t.family == "separable"]
    plans = Space(task.workload, host.cpu).seeds()
    for number, plan in enumerate(plans[:2]):
        record = make_record(host, family="separable", workload=task.workload, plan=plan)
        logs = tmp_path / f"logs{number}"
        Store(logs).append("host", [record])
        layers = compile_model(
            colour_onnx, out=tmp_path / f"out{number}", logs=logs
        ).manifest.layers
        tuned = [layer.family for layer in layers if layer.origin == "tuned"]
        expected = ["depthwise", "pointwise"] if isinstance(plan, ApartPlan) else ["separable"]
        assert tuned == expected


def test_a_poisoned_record_does_not_reach_an_artifact(
    colour_onnx: Path, host: TargetSpec, tmp_path: Path, caplog
):
    """One plan would write beyond the output; another line was altered after it was measured."""
    tasks = {task.family: task for task in model_tasks(colour_onnx, host).tasks}
    pair: SeparableWorkload = tasks["separable"].workload  # type: ignore[assignment]
    start: Any = Space(pair, host.cpu).start
    part = start.pointwise
    harmful = make_record(
        host,
        family="separable",
        workload=pair,
        plan=replace(start, pointwise=replace(part, row_tile=100_000)),
        ratio=0.01,
    )
    stem = tasks["conv"].workload
    good = make_record(host, family="conv", workload=stem, ratio=1.0)
    store = Store(tmp_path / "logs")
    store.append("host", [harmful, good])
    path = store.path("host")
    lines = path.read_text().splitlines()
    altered = json.loads(lines[1])
    altered["record"]["ratio"] = 0.01
    altered["record"]["plan"]["column_tile"] += 1
    path.write_text("\n".join([*lines, json.dumps(altered)]) + "\n")
    with caplog.at_level(logging.WARNING):
        manifest = compile_model(colour_onnx, out=tmp_path / "out", logs=store.folder).manifest
    assert "row_tile 100000" in caplog.text
    assert "altered by hand" in caplog.text
    origins = {layer.family: layer.origin for layer in manifest.layers}
    assert origins["conv"] == "tuned"
    (conv,) = [layer for layer in manifest.layers if layer.family == "conv"]
    assert plan_to_json(Space(stem, host.cpu).start) == {"kind": "conv", **conv.schedule}
    assert "tuned" not in {o for family, o in origins.items() if family != "conv"}


def test_tasks_are_each_kernel_once(colour_onnx: Path, host: TargetSpec):
    found = model_tasks(colour_onnx, host)
    tasks = found.tasks
    assert found.left_as_computed == ()
    assert [task.family for task in tasks] == ["conv", "separable", "pool", "dense"]
    assert [task.calls for task in tasks] == [1, 1, 1, 1]
    assert len({task.key for task in tasks}) == 4
    assert workload_to_json(DEPTHWISE)["kind"] == "conv"


def test_a_gated_product_is_a_task(host: TargetSpec, tmp_path: Path):
    graph = Graph(1, 8, 6, 6)
    x = graph.conv("x", 16, 8, 1)
    gate = graph.conv(graph.add("GlobalAveragePool", x), 16, 16, 1)
    scaled = graph.add("Mul", x, graph.add("HardSigmoid", gate, alpha=1 / 6, beta=0.5))
    onnx = graph.save(tmp_path / "gated.onnx", graph.conv(scaled, 8, 16, 1))
    found = model_tasks(onnx, host)
    assert found.left_as_computed == ()
    assert [task.family for task in found.tasks] == ["conv", "pool", "pointwise", "gated"]
    assert found.tasks[-1].name == "gated 36x16x8"
    tuned_log(onnx, host, tmp_path / "logs")
    layers = compile_model(onnx, out=tmp_path / "out", logs=tmp_path / "logs").manifest.layers
    tuned = {layer.family for layer in layers if layer.origin == "tuned"}
    assert tuned == {"conv", "pool", "pointwise", "gated"}
