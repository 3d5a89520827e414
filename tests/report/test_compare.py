from __future__ import annotations

import pytest

from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.report.compare import compare_records
from tvm_mobilenet.report.read import read_records

QUIET = [1.0, 1.01, 1.02, 1.03]


def verdicts(new, old):
    changes = compare_records(read_records([new]), read_records([old]))
    return {change.metric: change.verdict for change in changes}


def timing(values):
    def change(content):
        content["timing"]["values_ms"] = values

    return change


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (QUIET, "within noise"),
        ([1.01, 1.02, 1.03, 1.04], "within noise"),
        ([1.2, 1.21, 1.22], "regressed"),
        ([0.9, 0.91, 0.92], "improved"),
        ([0.9, 1.0, 1.5, 1.8], "within noise"),  # slower by the median, but noisy
    ],
)
def test_a_timing_has_changed_only_beyond_its_noise(now, verdict, edited):
    old = edited("measurement.json", timing(QUIET), "old.json")
    new = edited("measurement.json", timing(now), "new.json")
    assert verdicts(new, old)["latency"] == verdict


def test_sizes_and_counts_are_exact(data, edited):
    def one_more(content):
        content["instructions_per_inference"] += 1

    assert verdicts(edited("count.json", one_more), data / "count.json") == {
        "instructions": "regressed"
    }
    assert verdicts(data / "count.json", data / "count.json") == {"instructions": "unchanged"}
    smaller = edited("measurement.json", lambda c: c.update(library_bytes=10))
    assert verdicts(smaller, data / "measurement.json")["library"] == "improved"


def test_memory_is_one_value_and_gets_no_verdict(data, edited):
    def doubled(content):
        content["memory"]["peak_bytes"] *= 2

    found = verdicts(edited("measurement.json", doubled), data / "measurement.json")
    assert found["memory added"] == "one value each"


def test_an_output_that_begins_to_disagree_is_a_regression(data, edited):
    def broken(content):
        content["comparisons"][0]["within"] = False
        content["within"] = False

    found = verdicts(edited("verification.json", broken), data / "verification.json")
    assert found == {"outputs that disagree": "regressed"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["host"].update(cpu="Cortex-A72"), "unlike devices cannot be compared"),
        (lambda c: c.update(threads=4), "unlike numbers of threads cannot be compared"),
        (lambda c: c.update(board={"name": "rpi4"}), "unlike devices cannot be compared"),
    ],
)
def test_unlike_timings_are_refused(change, said, data, edited):
    new = read_records([edited("measurement.json", change)])
    with pytest.raises(UsageError, match=said):
        compare_records(new, read_records([data / "measurement.json"]))


def test_further_threads_are_no_reason_to_refuse(data, edited):
    new = read_records(
        [data / "measurement.json", edited("measurement.json", lambda c: c.update(threads=4))]
    )
    changes = compare_records(new, read_records([data / "measurement.json"]))
    assert [change.metric for change in changes] == ["latency", "memory added", "library"]


def test_nothing_in_common_is_refused(data):
    with pytest.raises(UsageError, match="no figure in common"):
        compare_records(read_records([data / "count.json"]), read_records([data / "tuning.json"]))


def test_a_peer_is_told_from_ours(data, edited):
    def slower(content):
        for engine in content["results"][0]["engines"]:
            engine["median_ms"] *= 10
            engine["round_medians_ms"] = [10 * value for value in engine["round_medians_ms"]]

    changes = compare_records(
        read_records([edited("comparison.json", slower)]), read_records([data / "comparison.json"])
    )
    moved = {change.is_ours for change in changes if change.verdict == "regressed"}
    assert moved == {True, False}
    assert sum(change.is_ours for change in changes if change.verdict == "regressed") == 1
