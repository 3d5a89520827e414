from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.tuning.conftest import make_record
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.tuning.store import Store


@pytest.fixture
def store(tmp_path: Path, host: TargetSpec) -> Store:
    store = Store(tmp_path / "logs")
    store.append(
        "host",
        [
            make_record(host, ratio=0.9, note="worse"),
            make_record(host, ratio=0.7, note="best"),
            make_record(host, verdict="measured", ratio=None, note="tried"),
            make_record(host, verdict="rejected", cost=None, ratio=None, note="it crashed"),
            make_record(host, conditions={"tvm": "0.1"}, note="old"),
        ],
    )
    return store


def notes(store: Store, target: str = "host") -> list[str]:
    return [record.note for record in store.read(target).trials]


def test_list_counts_what_a_log_holds(cli: Cli, store: Store):
    path = store.path("host")
    path.write_bytes(path.read_bytes() + b"garbage\n")
    (log,) = [
        log
        for log in cli("logs", "list", "--logs", store.folder, "--json").json
        if log["store"] == "yours"
    ]
    assert (log["records"], log["accepted"], log["kernels"]) == (5, 3, 1)
    assert (log["rejected"], log["left_out"]) == (1, 1)
    assert "host" in cli("logs", "list", "--logs", store.folder).out


def test_show_names_the_best_record_and_what_is_left_out(cli: Cli, store: Store):
    result = cli("logs", "show", "--logs", store.folder)
    assert result.code == 0
    assert "1.429x" in result.out
    assert "pointwise 49x16x24" in result.out
    assert "it was made with TVM 0.1" in result.err


def test_prune_keeps_the_best(cli: Cli, store: Store):
    path = store.path("host")
    path.write_bytes(path.read_bytes() + b"garbage\n")
    result = cli("logs", "prune", "host", "--keep-trials", "--logs", store.folder)
    assert "5 of 6 lines kept" in result.out
    result = cli("logs", "prune", "host", "--logs", store.folder)
    assert "2 of 5 lines kept" in result.out
    assert sorted(notes(store)) == ["best", "old"]
    assert "no log of target 'rpi4'" in cli("logs", "prune", "rpi4", "--logs", store.folder).fails(
        2
    )


def test_what_is_exported_can_be_imported(cli: Cli, store: Store, tmp_path: Path):
    file, other = tmp_path / "host.jsonl", tmp_path / "other"
    assert cli("logs", "export", "host", "-o", file, "--logs", store.folder).code == 0
    text = file.read_bytes()
    file.write_bytes(text + text[:50] + b"\n")
    result = cli("logs", "import", file, "--logs", other)
    assert "records added: host: 2" in result.out
    assert "left out" in result.err
    assert sorted(notes(Store(other))) == ["best", "old"]
    assert "host: 0" in cli("logs", "import", file, "--logs", other).out
    assert "there is no such file" in cli("logs", "import", "none", "--logs", other).fails(2)
    assert "no accepted record" in cli("logs", "export", "rpi4", "-o", file, "--logs", other).fails(
        2
    )


def test_merging_another_store(cli: Cli, store: Store, tmp_path: Path):
    other = tmp_path / "other"
    result = cli("logs", "merge", store.folder, "--logs", other)
    assert "host: 5 records added" in result.out
    assert "host: 0 records added" in cli("logs", "merge", store.folder, "--logs", other).out
    assert "no log was found" in cli("logs", "merge", tmp_path, "--logs", other).fails(2)
