from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "report/data"


def test_a_page_is_written_and_described(cli, tmp_path):
    path = tmp_path / "page.html"
    out = cli("report", DATA / "count.json", "-o", path)
    assert out.code == 0
    assert out.out.splitlines()[1] == "sections  Instructions, Records"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_without_a_file_it_is_report_html_here(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("report", DATA / "count.json").code == 0
    assert (tmp_path / "report.html").is_file()


def test_pipelines_read_standard_output(cli):
    found = cli("report", DATA / "count.json", "--format", "json").json
    assert found["sections"][0]["name"] == "instructions"
    assert cli("report", DATA / "count.json", "--format", "csv").out.startswith("section,table,")
    assert cli("report", DATA / "count.json", "--format", "md").out.startswith("# mobilenet_v1_")


def test_a_regression_is_said(cli, tmp_path):
    record = json.loads((DATA / "count.json").read_text())
    record["instructions_per_inference"] += 1
    new = tmp_path / "new.json"
    new.write_text(json.dumps(record))
    out = cli("report", new, "--compare", DATA / "count.json", "-o", tmp_path / "r.html")
    assert out.code == 0
    assert "1 figure regressed, see Changes" in out.err


def test_what_cannot_be_reported_is_a_usage_error(cli, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    out = tmp_path / "r.html"
    assert "no record of this project" in cli("report", tmp_path / "a.json", "-o", out).fails(2)
    said = cli("report", DATA / "count.json", "--compare", DATA / "tuning.json", "-o", out).fails(2)
    assert "no figure in common" in said
    assert "name says no format" in cli("report", DATA / "count.json", "-o", tmp_path / "r").fails(
        2
    )
    assert not out.exists()
