from __future__ import annotations

import json
import shutil

import pytest

from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.report.read import read_records

KINDS = {
    "comparison.json": ("comparison with peers", "comparisons"),
    "count.json": ("instruction count", "counts"),
    "counted.json": ("instructions beside peers", "counted_engines"),
    "exploration.json": ("exploration", "explorations"),
    "manifest.json": ("manifest", "manifests"),
    "measurement.json": ("measurement", "measurements"),
    "run.json": ("run", "runs"),
    "tuning.json": ("tuning report", "tunings"),
    "tuning_log.jsonl": ("tuning log", "trials"),
    "verification.json": ("verification", "verifications"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_record_is_known_by_its_content_whatever_its_name(name, data, tmp_path):
    shutil.copy(data / name, tmp_path / "something.txt")
    records = read_records([tmp_path / "something.txt"])
    kind, field = KINDS[name]
    assert [source.kind for source in records.sources] == [kind]
    assert getattr(records, field)


def test_every_record_of_the_tests_is_covered(data):
    assert {path.name for path in data.iterdir()} == set(KINDS)


def test_a_run_brings_its_verification(data):
    records = read_records([data / "run.json"])
    assert [found.model for found in records.verifications] == [records.runs[0].model]


def test_a_file_that_is_named_twice_is_read_once(data):
    records = read_records([data / "count.json", data / "../data/count.json"])
    assert len(records.counts) == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "neither JSON nor the lines of a tuning log"),
        (b"hello\nworld\n", "neither JSON nor the lines of a tuning log"),
        (b"{", "neither JSON nor the lines of a tuning log"),
        (b"[1, 2]", "no record of this project"),
        (b"3", "no record of this project"),
        (b'{"a": 1}', "no record of this project"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[" * 200_000, "neither JSON nor the lines of a tuning log"),
        (b'{"timing": 1, "host": 2, "library_sha256": 3}', "a measurement whose field model"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(content, found, tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=found) as caught:
        read_records([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"nothing\.json: no such file"):
        read_records([tmp_path / "nothing.json"])


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(InputFileError, match="no artifact, no tuning logs"):
        read_records([tmp_path])


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("measurement.json", lambda c: c["timing"].update(values_ms=[]), "timing.values_ms"),
        ("measurement.json", lambda c: c["timing"].update(values_ms=[1, 0]), "timing.values_ms.1"),
        ("measurement.json", lambda c: c.pop("threads"), "threads"),
        ("count.json", lambda c: c.update(floor=0), "floor"),
        ("verification.json", lambda c: c.update(comparisons=3), "comparisons"),
    ],
)
def test_a_field_that_is_needed_and_wrong_is_named(name, change, field, edited):
    with pytest.raises(InputFileError, match=rf"field {field} cannot be used"):
        read_records([edited(name, change)])


def test_a_field_of_a_newer_version_is_passed_over(edited):
    records = read_records([edited("measurement.json", lambda c: c.update(colour="blue"))])
    assert records.measurements


def test_a_ratio_that_a_script_could_not_compute_is_none(data, tmp_path):
    text = (data / "comparison.json").read_text()
    content = json.loads(text)
    content["results"][0]["engines"][0]["ratio"] = float("nan")
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(content))
    assert "NaN" in path.read_text()
    assert read_records([path]).comparisons[0].results[0].engines[0].ratio is None


def test_a_torn_line_of_a_tuning_log_costs_only_itself(data, tmp_path):
    whole = (data / "tuning_log.jsonl").read_text()
    path = tmp_path / "records.jsonl"
    path.write_text(whole + whole.splitlines()[0][:50])
    records = read_records([tmp_path])  # a folder with a log in it
    assert len(records.trials) == len(read_records([data / "tuning_log.jsonl"]).trials)
    assert records.notes == [f"{path}: 1 damaged line left out"]


def test_an_altered_artifact_is_refused(colour_dir, tmp_path):
    from tvm_mobilenet.errors import ArtifactError

    shutil.copytree(colour_dir, tmp_path / "colour")
    assert read_records([tmp_path / "colour"]).manifests
    with (tmp_path / "colour/model.so").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ArtifactError, match="altered"):
        read_records([tmp_path / "colour"])
