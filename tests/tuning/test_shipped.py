"""The logs that come with the project: whole, for their targets, and of use with this version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tuning.conftest import make_record
from tvm_mobilenet import targets as targets_module
from tvm_mobilenet.schedule.integer.generic import generic
from tvm_mobilenet.schedule.integer.workload import IntegerMatmulWorkload, Requantize
from tvm_mobilenet.targets import list_targets, load_target, shipped_folder
from tvm_mobilenet.tuning.recorded import RecordedPlans, read_stores, unfit
from tvm_mobilenet.tuning.records import plan_from, workload_from
from tvm_mobilenet.tuning.space import Space, plan_fault
from tvm_mobilenet.tuning.spaces import integer_product
from tvm_mobilenet.tuning.store import FILE_NAME, Store, shipped_store

SHIPPED = shipped_store().targets()


def test_there_is_nothing_but_logs_of_known_targets():
    folder = shipped_folder("tuning_logs")
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "README":
            assert path.name == FILE_NAME
            assert path.parent.parent == folder
            assert path.parent.name in list_targets()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_log_serves_its_target(name: str):
    target = load_target(name)
    found = shipped_store().read(name)
    assert not found.problems
    assert found.trials
    for record in found.trials:
        assert record.target == name
        assert record.verdict == "accepted"
        assert unfit(record, target) is None
        assert (
            plan_fault(workload_from(record.workload), plan_from(record.plan), target.cpu) is None
        )
        assert (record.counts is not None) == (record.conditions.cost == "instructions")


@pytest.mark.parametrize("name", SHIPPED)
def test_compile_is_offered_every_plan_of_a_shipped_log(name: str, tmp_path: Path):
    target = load_target(name)
    plans = RecordedPlans(target, read_stores(target, tmp_path))
    for record in shipped_store().read(name).trials:
        assert plans(record.family, workload_from(record.workload)) is not None


@pytest.mark.parametrize("name", ["rpi4", "rpi5"])
def test_int8_kernels_of_mobilenet_v1_have_a_record(name: str):
    """Of the full width at 224: those that take most, whatever a model's zero points are."""
    target = load_target(name)
    plans = RecordedPlans(target, shipped_store().read(name))
    byte = Requantize(dtype="uint8", zero_point=0, low=0, high=255)
    for rows, depth, columns in ((12544, 32, 64), (196, 512, 512)):
        workload = IntegerMatmulWorkload(
            rows=rows, depth=depth, columns=columns, dtype="uint8", requantize=byte
        )
        plan: Any = plans("int8_pointwise", generic(workload))
        assert plan is not None
        space = Space(workload, target.cpu, is_split_free=False)
        assert space.normal(plan) == plan
        assert integer_product.idle_share(workload, plan, target.cpu.cores) < 0.35


def test_a_shipped_log_is_used_for_its_fingerprint_alone(tmp_path: Path, monkeypatch):
    """As installed: a log in the package's own folder, and nothing of the user's."""
    rpi4 = load_target("rpi4")
    record = make_record(rpi4, ratio=0.5)
    monkeypatch.setattr(targets_module, "__file__", str(tmp_path / "tvm_mobilenet/targets.py"))
    inside = tmp_path / "tvm_mobilenet/_data/tuning_logs"
    Store(inside).append("rpi4", [record])
    assert shipped_store().folder == inside
    workload = workload_from(record.workload)
    nobody = tmp_path / "nobody"
    plans = RecordedPlans(rpi4, read_stores(rpi4, nobody))
    assert plans("pointwise", workload) == Space(workload, rpi4.cpu).start
    changed = rpi4.model_copy(update={"cpu": rpi4.cpu.model_copy(update={"l2_kib": 1024})})
    assert RecordedPlans(changed, read_stores(changed, nobody))("pointwise", workload) is None
