from __future__ import annotations

import json

import pytest

from tests.exploration.conftest import CONDITIONS, ScriptedProber
from tvm_mobilenet.errors import (
    CompileError,
    DeviceUnreachableError,
    OutputError,
    SpecError,
    UsageError,
)
from tvm_mobilenet.exploration.candidates import list_candidates
from tvm_mobilenet.exploration.choice import Budget, Measured, choose, front_by
from tvm_mobilenet.exploration.explorer import explore
from tvm_mobilenet.exploration.journal import Journal


def run(tmp_path, prober, **more):
    more = {"budget_ms": 8.0, **more}
    return explore("rpi4", out=tmp_path / "e", prober=prober, **more)


def everything(prober, budget, dtypes=("float32",)):
    """Measure all, and choose."""
    found = [Measured(one, prober.record(one)) for one in list_candidates(dtypes=dtypes)]
    return found, choose(found, budget)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.6, 3.0, 8.0, 40.0, 500.0])
def test_it_finds_what_measuring_everything_would_find(budget, seed, tmp_path):
    prober = ScriptedProber(seed=seed)
    result = run(tmp_path, prober, budget_ms=budget)
    found, (best, second) = everything(prober, Budget(cost=budget, unit="ms"))
    assert result.best is not None
    assert best is not None
    assert result.best.candidate == best.candidate
    if second is not None:
        assert result.runner_up is not None
        assert result.runner_up.candidate.accuracy <= second.candidate.accuracy
    front = front_by([one for one in found if one.cost <= budget], lambda one: one.cost)
    assert list(front) == within(result)
    by_size = front_by([o for o in found if o.cost <= budget], lambda one: one.probe.size_bytes)
    sizes = {one.candidate.name: one.candidate.weight_bytes for one in found}
    # One of two models of a size and an accuracy stands for both.
    assert {sizes[name] for name in by_size} <= {sizes[name] for name in result.front_by_size}


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_float_and_int8_models_are_chosen_among_together(budget, tmp_path, prober):
    dtypes = ("float32", "int8")
    result = run(tmp_path, prober, budget_ms=budget, dtypes=dtypes)
    _, (best, _) = everything(prober, Budget(cost=budget, unit="ms"), dtypes)
    assert result.best is not None
    assert best is not None
    assert result.best.candidate == best.candidate
    assert any("int8" in name for name in prober.probed)
    assert any("quantization-aware" in note for note in result.notes)


def test_what_is_beaten_is_not_measured(tmp_path, prober):
    result = run(tmp_path, prober)
    assert len(prober.probed) == len(set(prober.probed)) < len(list_candidates()) * 0.8
    skipped = [one for one in result.outcomes if one.status in ("dominated", "too slow")]
    assert len(skipped) + len(prober.probed) == len(result.outcomes)
    assert all(one.reason and one.measured is None for one in skipped)


def test_what_is_far_too_slow_is_not_measured(tmp_path, prober):
    result = run(tmp_path, prober, budget_ms=1.0)
    slow = {one.candidate.name for one in result.outcomes if one.status == "too slow"}
    assert "mobilenet_v4_conv_large_384" in slow
    assert not slow & set(prober.probed)


def test_what_is_too_large_is_known_without_measuring(tmp_path, prober):
    result = run(tmp_path, prober, budget_mb=4.0)
    large = [one for one in result.outcomes if one.status == "too large"]
    assert large
    assert all(one.candidate.weight_bytes > 4e6 for one in large)
    assert not {one.candidate.name for one in large} & set(prober.probed)
    assert result.best is not None
    assert (result.best.probe.size_bytes or 0) <= 4e6


def within(result):
    """Return the part of the front that is within the budget."""
    cost = {o.candidate.name: o.measured.cost for o in result.outcomes if o.measured}
    return [name for name in result.front if cost[name] <= result.budget.cost]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_killed_at_any_time_it_goes_on_where_it_was(after, tmp_path):
    def stop(candidate):
        return KeyboardInterrupt() if len(first.probed) > after else None

    whole = run(tmp_path / "whole", ScriptedProber())
    first = ScriptedProber(fail=stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    if after:
        assert json.loads((tmp_path / "e/explore.json").read_text())["complete"] is False
    second = ScriptedProber()
    result = run(tmp_path, second)
    assert not set(first.probed[:after]) & set(second.probed)
    assert result.complete
    assert result.best == whole.best
    assert within(result) == within(whole)


def test_a_second_run_measures_nothing(tmp_path, prober):
    first = run(tmp_path, prober)
    again = ScriptedProber()
    assert run(tmp_path, again).front == first.front
    assert again.probed == []


def test_another_budget_uses_what_is_there(tmp_path, prober):
    run(tmp_path, prober)
    again = ScriptedProber()
    run(tmp_path, again, budget_ms=4.0)
    assert not set(again.probed) & set(prober.probed)


@pytest.mark.parametrize("change", [{"threads": 2}, {"device": "another"}, {"fingerprint": "g"}])
def test_what_was_measured_otherwise_does_not_count(change, tmp_path, prober):
    run(tmp_path, prober)
    other = ScriptedProber(conditions=CONDITIONS.model_copy(update=change))
    run(tmp_path, other)
    assert other.probed


def test_a_torn_line_costs_only_itself(tmp_path, prober):
    run(tmp_path, prober)
    path = tmp_path / "e/explore.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    again = ScriptedProber()
    result = run(tmp_path, again)
    assert again.probed == [prober.probed[-1]]
    assert any("damaged" in note for note in result.notes)
    assert len(Journal(tmp_path / "e").read()[0]) == len(prober.probed)


def test_a_model_that_cannot_be_compiled_is_noted_and_the_others_go_on(tmp_path):
    def fail(candidate):
        return CompileError("no kernel") if candidate.family == "mobilenet_v2" else None

    prober = ScriptedProber(fail=fail)
    result = run(tmp_path, prober)
    failed = [one for one in result.outcomes if one.status == "failed"]
    assert failed
    assert {one.candidate.family for one in failed} == {"mobilenet_v2"}
    assert {one.reason for one in failed} == {"no kernel"}
    assert result.best is not None
    again = ScriptedProber(fail=fail)
    run(tmp_path, again)
    assert again.probed == []


def test_a_lost_board_ends_it_and_what_was_measured_is_kept(tmp_path):
    def fail(candidate):
        return DeviceUnreachableError("gone") if len(prober.probed) > 3 else None

    prober = ScriptedProber(fail=fail)
    with pytest.raises(DeviceUnreachableError):
        run(tmp_path, prober)
    assert len(Journal(tmp_path / "e").read()[0]) == 3


def test_counts_are_said_to_be_no_times(tmp_path):
    conditions = CONDITIONS.model_copy(update={"unit": "Minstr"})
    prober = ScriptedProber(conditions=conditions, ms_per_gmac=300.0)
    result = run(tmp_path, prober, budget_ms=None, budget_minstr=80.0)
    assert result.is_emulated
    assert result.front_by_memory == ()
    assert any("no times" in note for note in result.notes)
    assert result.best is not None
    assert result.best.cost <= 80


def test_a_folder_serves_one_exploration_at_a_time(tmp_path, prober):
    with (
        Journal(tmp_path / "e").claimed(),
        pytest.raises(OutputError, match="another exploration"),
    ):
        run(tmp_path, prober)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budget_ms": None}, UsageError, "give one of --budget-ms"),
        ({"budget_minstr": 3.0}, UsageError, "give one of --budget-ms"),
        ({"budget_ms": 0.0}, SpecError, "give more than 0"),
        ({"budget_ms": float("nan")}, SpecError, "give more than 0"),
        ({"budget_mb": -1.0}, SpecError, "give more than 0"),
        ({"budget_ms": None, "budget_minstr": 5.0}, UsageError, "the device measures in ms"),
        ({"families": ["v7"]}, SpecError, "family 'v7'"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(
    options, error, said, tmp_path, prober
):
    with pytest.raises(error, match=said):
        run(tmp_path, prober, **options)
    assert prober.probed == []


def test_a_target_that_does_not_run_here_needs_a_board(tmp_path):
    with pytest.raises(UsageError, match="does not run on this machine"):
        explore("rpi4", budget_ms=5.0, out=tmp_path / "e")


def test_the_result_is_a_record_that_a_report_takes(tmp_path, prober):
    from tvm_mobilenet.report.write import build_document

    result = run(tmp_path, prober)
    document = build_document([tmp_path / "e"])
    section = document.sections[0]
    assert section.name == "choice"
    assert result.best is not None
    assert result.best.candidate.name in section.lead
    assert [chart.title.rpartition("against ")[2] for chart in section.charts] == [
        "cost of one inference",
        "size of the library",
        "memory added",
    ]


def test_models_are_compiled_and_timed_here(tmp_path):
    accuracy = tmp_path / "mine.csv"
    accuracy.write_text("model,accuracy\nmobilenet_v1_0.25_32,50\nmobilenet_v1_1.0_512,90\n")
    result = explore(
        "host", budget_ms=20.0, accuracy=accuracy, out=tmp_path / "e", threads=1, use_logs=False
    )
    small, large = reversed(result.outcomes)
    assert small.measured is not None
    assert small.measured.probe.size_bytes
    assert small.measured.probe.peak_bytes
    low, high = small.measured.probe.low, small.measured.probe.high
    assert low is not None
    assert high is not None
    assert low <= small.measured.cost <= high
    assert large.measured is None
    assert large.status == "too slow"
    assert result.best == small.measured
    assert result.accuracy_source == "mine.csv, the user's own"


@pytest.mark.slow
def test_int8_models_are_quantized_and_timed_here(tmp_path):
    accuracy = tmp_path / "mine.csv"
    accuracy.write_text("model,accuracy,dtype\nmobilenet_v1_0.25_32,50,int8\n")
    result = explore(
        "host",
        budget_ms=100.0,
        dtypes=["float32", "int8"],
        accuracy=accuracy,
        out=tmp_path / "e",
        threads=1,
    )
    assert result.best is not None
    assert result.best.candidate.name == "mobilenet_v1_0.25_32 int8"


@pytest.mark.slow
@pytest.mark.arm
def test_models_are_counted_on_an_emulated_board(tmp_path, monkeypatch):
    from tvm_mobilenet.boards.sysroot import missing_packages

    if missing := missing_packages():
        pytest.skip(f"not installed here: {', '.join(missing)}; see `make emulator`")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    accuracy = tmp_path / "mine.csv"
    accuracy.write_text("model,accuracy\nmobilenet_v1_0.25_32,50\nmobilenet_v1_0.5_32,60\n")
    result = explore("rpi4", budget_minstr=5.0, accuracy=accuracy, out=tmp_path / "e")
    assert [one.status for one in result.outcomes] == ["measured", "measured"]
    large, small = (one.measured for one in result.outcomes)
    assert large is not None
    assert small is not None
    for one in (large, small):
        assert one.cost * 1e6 > one.candidate.macs / 4  # a multiply-add instruction does four
    assert result.best == large
    assert result.runner_up == small
    assert result.conditions.device == "emulated cortex-a72"
