from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.tuning.conftest import make_record
from tvm_mobilenet.errors import OutputError, UsageError
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.tuning.records import LineError, decode_line, encode_line
from tvm_mobilenet.tuning.store import Store, user_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "logs")


def notes(store: Store) -> list[str]:
    return [record.note for record in store.read("host").trials]


def fill(store: Store, host: TargetSpec, count: int) -> Path:
    store.append("host", [make_record(host, note=str(n)) for n in range(count)])
    return store.path("host")


def test_what_is_appended_is_read_back(store: Store, host: TargetSpec):
    records = [make_record(host, note=str(n)) for n in range(3)]
    store.append("host", records[:2])
    store.append("host", records[2:])
    found = store.read("host")
    assert list(found.trials) == records
    assert not found.problems
    assert store.targets() == ["host"]


def test_no_log_is_an_empty_one(store: Store):
    assert store.read("rpi4").trials == ()


def test_the_users_store_lies_where_xdg_says(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_store().folder == tmp_path / "tvm-mobilenet/tuning_logs"
    assert user_store(tmp_path / "mine").folder == tmp_path / "mine"


def test_a_torn_last_line_costs_itself_alone_and_is_cut_off(store: Store, host: TargetSpec, caplog):
    path = fill(store, host, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    found = store.read("host")
    assert [r.note for r in found.trials] == ["0", "1"]
    assert "cut short" in found.problems[0].reason
    assert f"{path}:3" in found.summary
    with caplog.at_level(logging.WARNING):
        store.append("host", [make_record(host, note="new")])
    assert "cut short" in caplog.text
    assert notes(store) == ["0", "1", "new"]
    assert not store.read("host").problems


def test_a_last_line_that_only_lacks_its_end_is_kept(store: Store, host: TargetSpec):
    path = fill(store, host, 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert notes(store) == ["0", "1"]
    store.append("host", [make_record(host, note="new")])
    assert notes(store) == ["0", "1", "new"]


def test_a_line_longer_than_a_block_is_mended_too(store: Store, host: TargetSpec):
    path = fill(store, host, 1)
    long = encode_line(make_record(host, note="x" * 200_000))
    path.write_bytes(path.read_bytes() + long[:-5])
    store.append("host", [make_record(host, note="new")])
    assert notes(store) == ["0", "new"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["record"].update(cost=0.001), "altered by hand"),
        (lambda c: c["record"]["plan"].update(row_tile=99), "altered by hand"),
        (lambda c: c.update(check="0" * 16), "altered by hand"),
        (lambda c: c.pop("check"), "no line of a tuning log"),
        (lambda c: c.update(record=[float("nan")]), "no line of a tuning log"),
    ],
)
def test_an_altered_line_is_refused_and_costs_nothing_else(
    store: Store, host: TargetSpec, change, reason
):
    path = fill(store, host, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    content = json.loads(lines[1])
    change(content)
    lines[1] = json.dumps(content).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    found = store.read("host")
    assert [r.note for r in found.trials] == ["0", "2"]
    assert reason in found.problems[0].reason


def test_garbage_between_lines_costs_nothing(store: Store, host: TargetSpec):
    path = fill(store, host, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff\x00garbage\n\n[1]\n" + second)
    assert notes(store) == ["0", "1"]
    assert len(store.read("host").problems) == 2


def test_a_line_of_another_format_is_told(host: TargetSpec):
    body = make_record(host).model_dump(mode="json") | {"format_version": 2}
    from tvm_mobilenet.tuning import records

    line = json.dumps({"check": records._check(body), "record": body}).encode()
    with pytest.raises(LineError, match="format_version is 2; this version reads 1"):
        decode_line(line)


def _append_many(folder: str, name: str, count: int) -> None:
    from tvm_mobilenet.targets import load_target

    host = load_target("host")
    for n in range(count):
        Store(Path(folder)).append("host", [make_record(host, note=f"{name}{n}")])


def test_several_writers_lose_nothing(store: Store):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_append_many, args=(str(store.folder), name, 30)) for name in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = store.read("host")
    assert not found.problems
    assert {r.note for r in found.trials} == {f"{name}{n}" for name in "abc" for n in range(30)}
    for name in "abc":
        order = [r.note for r in found.trials if r.note[0] == name]
        assert order == [f"{name}{n}" for n in range(30)]


def test_a_rewrite_does_not_lose_what_is_appended_meanwhile(store: Store, host: TargetSpec):
    fill(store, host, 1)
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_append_many, args=(str(store.folder), "a", 40))
    writer.start()
    while writer.is_alive():
        store.rewrite("host", lambda reading: reading.trials)
    writer.join(60)
    assert writer.exitcode == 0
    assert notes(store) == ["0", *(f"a{n}" for n in range(40))]


def _append_rounds(folder: str, begin: int, finished: Connection) -> None:
    """Append rounds of five for ever, and say after each that it is finished."""
    from tvm_mobilenet.targets import load_target

    host, store = load_target("host"), Store(Path(folder))
    for number in range(begin, 1 << 30):
        store.append("host", [make_record(host, note=f"{number}.{n}") for n in range(5)])
        finished.send(number)


def test_kill_9_at_random_moments_loses_no_finished_round(store: Store):
    rng = random.Random(3)
    context = multiprocessing.get_context("fork")
    finished: list[int] = []
    for _ in range(20):
        ours, theirs = context.Pipe(duplex=False)
        begin = max(finished, default=-1) + 1000
        process = context.Process(target=_append_rounds, args=(str(store.folder), begin, theirs))
        process.start()
        theirs.close()
        finished.append(ours.recv())
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):
            while True:
                finished.append(ours.recv())
        ours.close()
        found = store.read("host")
        assert len(found.problems) <= 1
        there = {r.note for r in found.trials}
        assert {f"{number}.{n}" for number in finished for n in range(5)} <= there


def test_a_full_disk_is_an_error_and_leaves_the_log_whole(small_disk: Path, host: TargetSpec):
    store = Store(small_disk)
    written: list[str] = []

    def fill_up() -> None:
        for n in range(1000):
            store.append("host", [make_record(host, note=str(n))])
            written.append(str(n))

    with pytest.raises(OutputError, match="the disk is full"):
        fill_up()
    assert written
    found = store.read("host")
    assert [r.note for r in found.trials] == written
    assert not found.problems
    with pytest.raises(OutputError, match="the disk is full"):
        store.rewrite("host", lambda reading: reading.trials * 10)
    assert notes(store) == written


def test_rewriting_what_is_not_there_names_what_is(store: Store, host: TargetSpec):
    fill(store, host, 1)
    with pytest.raises(UsageError, match=r"no log of target 'rpi4'.*there are host"):
        store.rewrite("rpi4", lambda reading: reading.trials)


def test_merging_twice_adds_once(store: Store, host: TargetSpec, tmp_path: Path):
    fill(store, host, 3)
    other = Store(tmp_path / "other")
    assert other.merge("host", store.read("host")) == 3
    assert other.merge("host", store.read("host")) == 0
    assert notes(other) == ["0", "1", "2"]
