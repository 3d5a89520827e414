"""The search: measured for real on this machine, and with a measurer that goes wrong as told."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tuning.conftest import DEPTHWISE, MATMUL, c_library
from tvm_mobilenet.errors import OutputError, SpecError, TuningError, UsageError
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tune import tune_model
from tvm_mobilenet.tuning.budget import Budget
from tvm_mobilenet.tuning.local import LocalMeasurer
from tvm_mobilenet.tuning.measurer import Entrant, Figures
from tvm_mobilenet.tuning.records import canonical, plan_to_json, workload_to_json
from tvm_mobilenet.tuning.space import Space
from tvm_mobilenet.tuning.statistics import Ratio, is_tight, typical, wins
from tvm_mobilenet.tuning.store import Store
from tvm_mobilenet.tuning.tasks import Task, floor_ms
from tvm_mobilenet.tuning.tuner import Tuner
from tvm_mobilenet.tuning.workers import BuildPool, CandidateError, WorkerProcess

TASKS = [Task("pointwise", MATMUL, 3), Task("depthwise", DEPTHWISE, 1)]


class FakeBuilds:
    """A pool that has built everything already."""

    def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
        done: Future[dict[str, Any]] = Future()
        done.set_result({"library": canonical(message["plan"])})
        return done

    def quiet(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass


class FakeMeasurer:
    """A device on which each plan costs what `price` says, or goes wrong as it raises."""

    threads = 2
    cache = "cold"
    cost = "latency"
    is_exact = False
    is_here = True
    slots = 1
    facts: Mapping[str, Any] = {
        "device": "a fake",
        "governor": None,
        "cost": "latency",
        "is_emulated": False,
    }

    def __init__(self, price: Callable[[Mapping[str, Any]], float]) -> None:
        self.price = price
        self.measured: list[str] = []

    def floor(self, workload: Any) -> float:
        return floor_ms(workload, load_target("host").cpu, 100.0, self.threads)

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        self.measured.append(canonical([entrant.workload, entrant.plan]))
        return Figures(cost=self.price(entrant.plan), repeats=10, is_tight=True, error=1e-6)

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        return [[self.price(entrant.plan)] * rounds for entrant in entrants]

    def close(self) -> None:
        pass


def tuner(
    store: Store,
    measurer: Any,
    trials: int,
    tasks: Sequence[Task] = TASKS,
    builders: Any = None,
) -> Tuner:
    pool: Any = builders or FakeBuilds()
    return Tuner(
        model="a model",
        tasks=tasks,
        target=load_target("host"),
        store=store,
        reading=store.read("host"),
        measurer=measurer,
        builders=pool,
        budget=Budget(trials=trials),
        progress=NoProgress(),
    )


def tall_is_fast(plan: Mapping[str, Any]) -> float:
    return 4.0 - 0.1 * float(plan.get("row_tile", 0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "logs")


def accepted(store: Store) -> list[Any]:
    return [r for r in store.read("host").trials if r.verdict == "accepted"]


def test_the_search_finds_the_best_plan_and_says_so(store: Store, host: TargetSpec):
    def price(plan: Mapping[str, Any]) -> float:
        return tall_is_fast(plan) if plan["kind"] == "matmul" else 4.0

    report = tuner(store, FakeMeasurer(price), 160).run()
    space = Space(MATMUL, host.cpu)
    tiles: list[Any] = list(space.neighbours(space.start))
    best = max(plan.row_tile for plan in tiles)
    pointwise, depthwise = report.tasks
    assert pointwise.status == "tuned"
    assert pointwise.best == pytest.approx(4.0 - 0.1 * best)
    assert pointwise.untuned is not None
    assert pointwise.best is not None
    assert pointwise.ratio == pytest.approx(pointwise.best / pointwise.untuned)
    assert depthwise.status == "computed plan stands"
    assert depthwise.ratio == 1.0
    assert report.best < report.untuned
    last = {r.family: r for r in accepted(store)}
    assert last["pointwise"].plan["row_tile"] == best
    assert last["depthwise"].ratio == 1.0


def test_no_plan_is_measured_twice_and_starts_come_first(store: Store, host: TargetSpec):
    measurer = FakeMeasurer(tall_is_fast)
    tuner(store, measurer, 60).run()
    assert len(measurer.measured) == len(set(measurer.measured))
    for task, found in zip(TASKS, measurer.measured, strict=False):
        start = plan_to_json(Space(task.workload, host.cpu).start)
        assert found == canonical([workload_to_json(task.workload), start])


def test_the_budget_is_for_the_search_as_a_whole(store: Store):
    assert tuner(store, FakeMeasurer(tall_is_fast), 20).run().trials == 20
    again = tuner(store, FakeMeasurer(tall_is_fast), 20).run()
    assert again.trials == 0
    assert again.spent_before["trials"] == 20
    more = tuner(store, FakeMeasurer(tall_is_fast), 35).run()
    assert more.trials == 15
    other = tuner(store, FakeMeasurer(tall_is_fast), 10, tasks=TASKS[:1]).run()
    assert other.trials == 10


def test_a_search_that_was_cut_short_goes_on_where_it_was(store: Store):
    measurer = FakeMeasurer(tall_is_fast)

    def interrupted(entrant: Entrant, best: float | None) -> Figures:
        if len(measurer.measured) == 13:
            raise KeyboardInterrupt
        return FakeMeasurer.measure(measurer, entrant, best)

    measurer.measure = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tuner(store, measurer, 40).run()
    before = store.read("host")
    assert sum(s.trials for s in before.sessions) == 13
    assert len([r for r in before.trials if r.verdict == "measured"]) == 13
    second = FakeMeasurer(tall_is_fast)
    assert tuner(store, second, 40).run().trials == 27
    # Only the computed plans, and the best one found before, are measured again.
    assert len(set(second.measured) & set(measurer.measured)) <= len(TASKS) + 1


def test_a_better_plan_of_before_is_what_must_be_beaten(store: Store):
    first = tuner(store, FakeMeasurer(tall_is_fast), 60).run()
    report = tuner(store, FakeMeasurer(tall_is_fast), 90).run()
    assert report.tasks[0].status == "tuned"
    assert report.tasks[0].best is not None
    assert first.tasks[0].best is not None
    assert report.tasks[0].best <= first.tasks[0].best
    keys = [canonical([r.family, r.plan]) for r in accepted(store)]
    assert len(keys) == len(set(keys))


def test_a_winner_must_win_twice(store: Store):
    measurer = FakeMeasurer(tall_is_fast)
    contests = 0

    def lucky_once(entrants: Sequence[Entrant], **how: Any) -> list[list[float]]:
        nonlocal contests
        contests += 1
        costs = [[1.0] * how["rounds"] for _ in entrants]
        if contests % 2:
            costs[2] = [0.5] * how["rounds"]
        return costs

    measurer.contest = lucky_once  # type: ignore[method-assign]
    report = tuner(store, measurer, 40, tasks=TASKS[:1]).run()
    assert contests >= 2
    assert report.tasks[0].status == "computed plan stands"


def test_what_loses_with_one_thread_is_refused(store: Store):
    measurer = FakeMeasurer(tall_is_fast)
    asked = 0

    def costly_alone(entrants: Sequence[Entrant], **how: Any) -> list[list[float]]:
        nonlocal asked
        costs = FakeMeasurer.contest(measurer, entrants, **how)
        asked += how["threads"] == 1
        return costs[::-1] if how["threads"] == 1 else costs

    measurer.contest = costly_alone  # type: ignore[method-assign]
    report = tuner(store, measurer, 40, tasks=TASKS[:1]).run()
    assert asked
    assert report.tasks[0].status == "computed plan stands"


def test_what_goes_wrong_is_rejected_and_not_tried_again(store: Store, host: TargetSpec):
    outer = plan_to_json(Space(MATMUL, host.cpu).start)["outer"]

    def touchy(plan: Mapping[str, Any]) -> float:
        if plan["outer"] != outer:
            raise CandidateError("it crashed: SIGSEGV")
        return tall_is_fast(plan)

    report = tuner(store, FakeMeasurer(touchy), 40, tasks=TASKS[:1]).run()
    rejected = [r for r in store.read("host").trials if r.verdict == "rejected"]
    assert rejected
    assert {r.note for r in rejected} == {"it crashed: SIGSEGV"}
    assert all(r.plan["outer"] == outer for r in accepted(store))
    assert report.tasks[0].status == "tuned"
    again = FakeMeasurer(touchy)
    tuner(store, again, 60, tasks=TASKS[:1]).run()
    known = {canonical([r.workload, r.plan]) for r in rejected}
    assert not known & set(again.measured)


def test_what_spills_more_than_the_computed_plan_is_rejected_and_never_measured(
    store: Store, host: TargetSpec
):
    start: Any = Space(MATMUL, host.cpu).start

    class Spilling(FakeBuilds):
        def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
            done: Future[dict[str, Any]] = Future()
            spills = 3 * (message["plan"].get("row_tile", 0) > start.row_tile)
            done.set_result({"library": canonical(message["plan"]), "spills": spills})
            return done

    device = FakeMeasurer(tall_is_fast)
    tuner(store, device, 60, TASKS[:1], builders=Spilling()).run()
    rejected = [r for r in store.read("host").trials if r.verdict == "rejected"]
    assert rejected
    assert min(r.plan["row_tile"] for r in rejected) > start.row_tile
    assert "it spills: 3 vectors" in rejected[0].note
    assert "0 in the computed plan's" in rejected[0].note
    rows = [json.loads(key)[1]["row_tile"] for key in device.measured]
    assert max(rows) == start.row_tile
    assert min(rows) < start.row_tile


def test_of_equal_hopes_those_that_build_faster_come_first(store: Store):
    slow, other = replace(MATMUL, rows=50), replace(MATMUL, rows=48)

    class Weighed(FakeBuilds):
        def submit(self, message: Mapping[str, Any]) -> Future[dict[str, Any]]:
            done: Future[dict[str, Any]] = Future()
            seconds = 9.0 if message["workload"] == workload_to_json(slow) else 0.3
            done.set_result({"library": canonical(message["plan"]), "seconds": seconds})
            return done

    tasks = [Task("slow", slow, 3), Task("quick", MATMUL, 3), Task("quick too", other, 3)]
    trials = len(tasks) + 4 * 8
    tuner(store, FakeMeasurer(lambda plan: 4.0), trials, tasks, builders=Weighed()).run()
    rows = [r.workload["rows"] for r in store.read("host").trials if r.verdict == "measured"]
    assert rows.count(slow.rows) == 1  # its computed plan
    assert rows.count(MATMUL.rows) == rows.count(other.rows) == 1 + 2 * 8


def test_a_finalist_that_goes_wrong_in_the_contest_costs_itself_alone(
    store: Store, host: TargetSpec
):
    outer = plan_to_json(Space(MATMUL, host.cpu).start)["outer"]
    measurer = FakeMeasurer(tall_is_fast)
    refused = 0

    def strict(entrants: Sequence[Entrant], **how: Any) -> list[list[float]]:
        nonlocal refused
        if any(e.plan["outer"] != outer for e in entrants[2:]):
            refused += 1
            raise CandidateError("wrong result: off by 3 from the reference")
        return FakeMeasurer.contest(measurer, entrants, **how)

    measurer.contest = strict  # type: ignore[method-assign]
    tuner(store, measurer, 60, tasks=TASKS[:1]).run()
    assert refused
    assert accepted(store)
    assert all(r.plan["outer"] == outer for r in accepted(store))


def test_a_task_that_cannot_be_tuned_is_isolated(store: Store):
    def broken(plan: Mapping[str, Any]) -> float:
        if plan["kind"] == "depthwise":
            raise CandidateError("it hung: no answer within 20 s")
        return tall_is_fast(plan)

    report = tuner(store, FakeMeasurer(broken), 40).run()
    assert report.tasks[0].status == "tuned"
    assert "not tuned: its computed plan cannot be measured: it hung" in report.tasks[1].status
    assert {r.family for r in accepted(store)} == {"pointwise"}


def test_exact_figures_need_no_contest_and_one_confirmation(store: Store):
    measurer = FakeMeasurer(tall_is_fast)
    measurer.is_exact = True

    def no_contest(entrants: Sequence[Entrant], **how: Any) -> list[list[float]]:
        raise AssertionError("what is exact is not contested")

    measurer.contest = no_contest  # type: ignore[method-assign]
    report = tuner(store, measurer, 40, tasks=TASKS[:1]).run()
    assert report.tasks[0].status == "tuned"
    winner = accepted(store)[-1]
    assert winner.ratio == pytest.approx(winner.cost / report.tasks[0].untuned)
    found = canonical([winner.workload, winner.plan])
    assert measurer.measured.count(found) == 2


def test_an_exact_figure_that_does_not_repeat_is_rejected(store: Store):
    measurer = FakeMeasurer(tall_is_fast)
    measurer.is_exact = True

    def drifting(entrant: Entrant, best: float | None) -> Figures:
        figures = FakeMeasurer.measure(measurer, entrant, best)
        drift = measurer.measured.count(measurer.measured[-1]) * 1e-3
        return replace(figures, cost=figures.cost + drift)

    measurer.measure = drifting  # type: ignore[method-assign]
    report = tuner(store, measurer, 30, tasks=TASKS[:1]).run()
    assert report.tasks[0].status == "computed plan stands"
    notes = [r.note for r in store.read("host").trials if r.verdict == "rejected"]
    assert notes
    assert "first and" in notes[0]


def test_several_devices_measure_at_once(store: Store):
    measurer = FakeMeasurer(tall_is_fast)
    measurer.slots = 2
    together = threading.Barrier(2, timeout=5)
    met: list[bool] = []

    def meeting(entrant: Entrant, best: float | None) -> Figures:
        if best is not None:
            with suppress(threading.BrokenBarrierError):
                together.wait()
                met.append(True)
        return FakeMeasurer.measure(measurer, entrant, best)

    measurer.measure = meeting  # type: ignore[method-assign]
    report = tuner(store, measurer, 17, tasks=TASKS[:1]).run()
    assert report.trials == 17
    assert len(met) >= 8
    assert report.tasks[0].status == "tuned"


def test_the_search_stops_where_nothing_is_to_be_had(store: Store):
    report = tuner(store, FakeMeasurer(lambda plan: 1.0), 10_000).run()
    assert report.trials < 200
    assert all("nothing better" in t.stopped or "every plan" in t.stopped for t in report.tasks)
    near = tuner(Store(store.folder / "b"), FakeMeasurer(lambda plan: 1e-9), 10_000).run()
    assert {t.stopped for t in near.tasks} == {"near the floor"}


def test_what_cannot_be_recorded_ends_the_search(tmp_path: Path):
    measurer = FakeMeasurer(tall_is_fast)

    def spoil(entrant: Entrant, best: float | None) -> Figures:
        (tmp_path / "logs").write_text("a file")
        return Figures(cost=1.0, repeats=10, is_tight=True, error=0.0)

    measurer.measure = spoil  # type: ignore[method-assign]
    with pytest.raises(OutputError):
        tuner(Store(tmp_path / "logs"), measurer, 10).run()


def test_a_search_on_a_full_disk_keeps_what_it_wrote_and_goes_on_later(
    small_disk: Path, store: Store
):
    full = Store(small_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        tuner(full, FakeMeasurer(tall_is_fast), 200).run()
    found = full.read("host")
    assert not found.problems
    assert found.sessions
    shutil.copytree(small_disk, store.folder)
    spent = sum(session.trials for session in found.sessions)
    report = tuner(store, FakeMeasurer(tall_is_fast), spent + 5).run()
    assert report.spent_before["trials"] == spent
    assert report.trials == 5


def test_two_searches_share_one_store(store: Store):
    first = tuner(store, FakeMeasurer(tall_is_fast), 31, tasks=TASKS[1:])
    second = tuner(store, FakeMeasurer(tall_is_fast), 40)
    with ThreadPoolExecutor(2) as threads:
        reports = [f.result() for f in [threads.submit(first.run), threads.submit(second.run)]]
    reading = store.read("host")
    assert not reading.problems
    assert sum(s.trials for s in reading.sessions) == sum(r.trials for r in reports) > 40
    tried = [r for r in reading.trials if r.verdict in ("measured", "rejected")]
    assert len(tried) == sum(r.trials for r in reports)


# -- for real -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measurer(host: TargetSpec):
    found = LocalMeasurer(host, threads=1, timeout_s=60)
    yield found
    found.close()


@pytest.fixture(scope="module")
def built(host: TargetSpec, tmp_path_factory) -> Entrant:
    """The computed plan of a product, built in a worker process."""
    settings = {
        "target": host.model_dump_json(by_alias=True),
        "folder": str(tmp_path_factory.mktemp("builds")),
    }
    plan = plan_to_json(Space(MATMUL, host.cpu).start)
    pool = BuildPool(settings, 1)
    message: dict[str, Any] = {"workload": workload_to_json(MATMUL), "plan": plan}
    try:
        library = pool.submit(message).result(120)["library"]
        failing = pool.submit(message | {"plan": {"kind": "none"}})
        assert isinstance(failing.exception(120), CandidateError)
        assert pool.submit(message).result(120)["library"]
    finally:
        pool.close()
    children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any("building:Builder" in words for words in children)
    assert not list(Path(settings["folder"]).iterdir())
    return Entrant(message["workload"], plan, library)


def test_a_candidate_is_checked_and_timed(measurer: LocalMeasurer, built: Entrant):
    found = measurer.measure(built, None)
    assert found.cost > 0
    assert found.repeats >= 4
    assert found.error < 1e-4
    times = measurer.contest([built, built, built], rounds=5, threads=1, seed=1)
    assert [len(series) for series in times] == [5, 5, 5]
    ratio = Ratio.of(times[0], times[1])
    assert ratio.low <= ratio.value <= ratio.high


def test_a_wrong_result_is_rejected(measurer: LocalMeasurer, built: Entrant):
    """The library is of another plan than the one its weights are packed for."""
    vectors = 1 if built.plan["column_vectors"] != 1 else 2
    wrong = Entrant(built.workload, {**built.plan, "column_vectors": vectors}, built.library)
    with pytest.raises(CandidateError, match="wrong result: off by"):
        measurer.measure(wrong, None)
    with pytest.raises(CandidateError, match="wrong result"):
        measurer.contest([built, built, wrong], rounds=3, threads=1, seed=1)
    assert measurer.measure(built, None).error < 1e-4


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_candidate_that_crashes_or_hangs_is_rejected_and_the_next_is_measured(
    measurer: LocalMeasurer, built: Entrant, tmp_path: Path, monkeypatch
):
    crash = c_library(tmp_path, "*(volatile int *)0 = 1; return 0;")
    with pytest.raises(CandidateError, match="it crashed: SIGSEGV"):
        measurer.measure(replace(built, library=crash), None)
    assert measurer.measure(built, None).cost > 0
    hang = c_library(tmp_path, "for (;;); return 0;")
    monkeypatch.setattr(measurer, "_timeout_s", 2.0)
    with pytest.raises(CandidateError, match="it hung: no answer within 2 s"):
        measurer.measure(replace(built, library=hang), None)
    monkeypatch.setattr(measurer, "_timeout_s", 60.0)
    nothing = c_library(tmp_path, "return 0;")
    with pytest.raises(CandidateError, match=r"wrong result: 100.0 % of the output is not written"):
        measurer.measure(replace(built, library=nothing), None)


def test_a_worker_that_cannot_start_ends_the_search(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(TuningError, match="cannot be started"):
        WorkerProcess("tvm_mobilenet.tuning.measuring:LocalKernels", {}).request({}, 1)


def test_tuning_a_model_and_compiling_with_what_was_found(cli, colour_onnx: Path, tmp_path: Path):
    from tvm_mobilenet.workflow import compile_model

    logs = tmp_path / "logs"
    words = ("tune", colour_onnx, "--trials", 10, "--logs", logs)
    dry = cli(*words, "--dry-run")
    assert dry.code == 0, dry.err
    assert "nothing was measured" in dry.out
    assert not logs.exists()
    result = cli(*words, "--json")
    assert result.code == 0, result.err
    assert result.json["trials"] == 10
    assert {task["calls"] for task in result.json["tasks"]} == {1}
    assert "nothing is left of the budget" in cli(*words).out
    manifest = compile_model(colour_onnx, out=tmp_path / "out", logs=logs).manifest
    assert manifest.schedule.tuned >= 1
    shown = cli("logs", "show", "--logs", logs)
    assert shown.code == 0, shown.err
    assert "x" in shown.out
    wrong = cli("tune", colour_onnx, "--cache", "lukewarm").fails(2)
    assert "give cold or warm" in wrong


# -- what is asked for -----------------------------------------------------------------------


def test_a_budget_out_of_range_is_refused(colour_onnx: Path):
    with pytest.raises(SpecError, match="trials 0: give 1 or more"):
        tune_model(colour_onnx, trials=0)
    with pytest.raises(SpecError, match="minutes 0: give more than 0"):
        tune_model(colour_onnx, minutes=0)
    with pytest.raises(UsageError, match="give one of the two"):
        tune_model(colour_onnx, minutes=1, trials=1)


def test_a_board_is_not_tuned_on_this_machine(colour_onnx: Path):
    with pytest.raises(UsageError, match="target rpi4: this machine is"):
        tune_model(colour_onnx, target="rpi4", trials=10)


def test_statistics_see_through_disturbances():
    quiet = [1.0 + 0.001 * n for n in range(20)]
    disturbed = [value * 3 if n % 3 == 0 else value for n, value in enumerate(quiet)]
    assert typical(disturbed) == pytest.approx(typical(quiet), rel=0.01)
    assert is_tight(quiet)
    assert not is_tight(quiet[:5])
    assert not is_tight([1.0 + 0.2 * n for n in range(20)])
    assert wins(Ratio.of([0.9] * 21, [1.0] * 21))
    assert not wins(Ratio.of([0.999] * 21, [1.0] * 21))
    even = [0.9, 1.1] * 10 + [0.9]
    assert not wins(Ratio.of(even, [1.0] * 21))


def test_a_report_is_plain_data(store: Store):
    data = tuner(store, FakeMeasurer(tall_is_fast), 5).run().to_dict()
    assert data["tasks"][0]["name"] == "pointwise 49x16x24"
    assert data["untuned"] >= data["best"]
