from __future__ import annotations

from dataclasses import replace

from tests.exploration.conftest import ScriptedProber
from tvm_mobilenet.exploration.candidates import list_candidates
from tvm_mobilenet.exploration.choice import Budget, Measured, choose, front_by

BUDGET = Budget(cost=5.0, unit="ms")
SOME = list_candidates()[0]


def measured(name, accuracy, cost, size=1_000_000):
    candidate = replace(SOME, model=name, accuracy=accuracy)
    record = ScriptedProber().record(SOME)
    return Measured(candidate, record.model_copy(update={"cost": cost, "size_bytes": size}))


def test_the_front_holds_what_nothing_beats():
    found = [
        measured("a", 50, 1.0),
        measured("b", 60, 2.0),
        measured("worse", 55, 2.5),
        measured("c", 70, 3.0),
        measured("equal and slower", 70, 3.5),
    ]
    assert front_by(found, lambda one: one.cost) == ("a", "b", "c")


def test_what_is_not_known_is_on_no_front():
    assert front_by([measured("a", 50, 1.0)], lambda one: None) == ()


def test_the_most_accurate_within_the_budget_and_the_next_that_needs_less():
    found = [
        measured("too slow", 90, 5.1),
        measured("best", 80, 4.0),
        measured("slower and worse", 79, 4.5),
        measured("second", 70, 3.0),
    ]
    best, second = choose(found, BUDGET)
    assert best is not None
    assert second is not None
    assert (best.candidate.name, second.candidate.name) == ("best", "second")


def test_of_equals_the_cheaper_one():
    best, _ = choose([measured("dear", 80, 4.0), measured("cheap", 80, 2.0)], BUDGET)
    assert best is not None
    assert best.candidate.name == "cheap"


def test_the_size_counts_where_it_has_a_budget():
    found = [measured("large", 80, 1.0, 5_000_000), measured("small", 60, 1.0, 900_000)]
    best, second = choose(found, replace(BUDGET, size_mb=4))
    assert best is not None
    assert best.candidate.name == "small"
    assert second is None


def test_nothing_fits():
    assert choose([measured("a", 50, 9.0)], BUDGET) == (None, None)
