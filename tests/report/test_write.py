from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tvm_mobilenet as tm
from tvm_mobilenet.errors import OutputError, UsageError
from tvm_mobilenet.report.data import Chart
from tvm_mobilenet.report.write import build_document, render, write_report

GOLDEN = Path(__file__).parent / "golden"

SECTIONS = {
    "comparison.json": ["peers", "devices"],
    "count.json": ["instructions"],
    "counted.json": ["instructions"],
    "exploration.json": ["choice"],
    "manifest.json": ["artifacts"],
    "measurement.json": ["latency", "layers", "memory", "devices"],
    "run.json": ["peers", "parity"],
    "tuning.json": ["tuning"],
    "tuning_log.jsonl": ["tuning"],
    "verification.json": ["parity"],
}


@pytest.fixture
def everything(data, monkeypatch):
    monkeypatch.chdir(data.parent)
    return sorted(Path("data").iterdir())


def scrubbed(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+(\.\d+)?(Z|\+00:00)", "DATE", text)
    text = re.sub(r"tvm-mobilenet \d+\.\d+\.\d+, DATE", "tvm-mobilenet VERSION, DATE", text)
    return re.sub(r"\b[0-9a-f]{64}\b", "SHA256", text)


@pytest.mark.parametrize("kind", ["html", "md"])
def test_the_report_is_as_expected(kind, everything, request):
    made = scrubbed(render(build_document(everything), kind))
    golden = GOLDEN / f"everything.{kind}"
    if request.config.getoption("--update-golden"):
        golden.write_text(made, encoding="utf-8")
    expected = golden.read_text(encoding="utf-8") if golden.exists() else ""
    assert made == expected, f"{golden.name} is old; run with --update-golden and look at it"


@pytest.mark.parametrize("name", SECTIONS)
def test_only_what_there_is_data_for_appears(name, data):
    document = build_document([data / name])
    assert [section.name for section in document.sections] == [*SECTIONS[name], "sources"]
    for kind in ("html", "md", "csv", "json"):
        assert render(document, kind)


def test_html_is_complete_in_itself_and_runs_nothing(everything):
    html = render(build_document(everything), "html")
    assert "<script" not in html
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", html)
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_what_a_record_says_is_never_markup(edited):
    hostile = "<img src=x onerror=alert(1)>"

    def change(content):
        content["model"] = content["target"] = content["host"]["cpu"] = hostile
        content["profile"]["layers"][0]["kernel"] = hostile
        content["warnings"] = [hostile]

    document = build_document([edited("measurement.json", change)], title=hostile)
    assert "<img" not in render(document, "html")
    assert "&lt;img" in render(document, "html")
    assert "<img" not in render(document, "md")


def test_json_keeps_figures_as_they_were_recorded(data):
    record = json.loads((data / "measurement.json").read_text())
    report = json.loads(render(build_document([data / "measurement.json"]), "json"))
    tables = {t["name"]: t for s in report["sections"] for t in s["tables"]}
    assert tables["series"]["rows"][0]["load_ms"] == record["load_ms"]
    layers = tables["layers"]["rows"]
    assert [r["kernel"] for r in layers] == [r["kernel"] for r in record["profile"]["layers"]]
    assert tables["series"]["units"]["median_ms"] == "ms"


def test_the_drift_of_a_quantized_model_is_shown_in_steps_and_noise(edited):
    def quantized(content):
        for number, layer in enumerate(content["drift"]["layers"]):
            layer.update(relative_l2=None, growth=None, steps=2 * (number == 3), float_snr_db=30.0)
            layer["exceeds"] = number == 3

    document = build_document([edited("verification.json", quantized)])
    (chart,) = document.sections[0].charts
    assert isinstance(chart, Chart)
    assert "at most 2 steps from ONNX Runtime's" in chart.summary
    assert [len(series.points) for series in chart.series] == [4, 1]
    assert render(document, "html")


def test_csv_has_a_line_for_each_cell(data):
    text = render(build_document([data / "count.json"]), "csv")
    rows = list(csv.DictReader(text.splitlines()))
    found = [r for r in rows if r["column"] == "instructions"]
    record = json.loads((data / "count.json").read_text())
    assert [int(r["value"]) for r in found] == [r["instructions"] for r in record["layers"]]


def test_the_floor_is_the_work_at_the_peak(data):
    profile = json.loads((data / "measurement.json").read_text())["profile"]
    report = json.loads(render(build_document([data / "measurement.json"]), "json"))
    (table,) = [t for s in report["sections"] for t in s["tables"] if t["name"] == "layers"]
    for layer, row in zip(profile["layers"], table["rows"], strict=True):
        if layer["gflops"] is None:
            assert row["floor_us"] is None
            continue
        work = layer["gflops"] * layer["median_ms"]
        assert row["floor_us"] == pytest.approx(1e3 * work / profile["peak"]["gflops"])


def test_a_comparison_says_how_many_regressed(data, edited):
    def slower(content):
        content["timing"]["values_ms"] = [100.0, 101.0]

    new = edited("measurement.json", slower)
    document = build_document([new], compare=[data / "measurement.json"])
    assert document.sections[0].name == "changes"
    assert json.loads(render(document, "json"))["regressions"] == 1


def test_the_format_is_what_the_name_ends_in(data, tmp_path):
    for name, begin in (("a.html", "<!DOCTYPE"), ("a.md", "# "), ("a.json", "{"), ("a.csv", "sec")):
        tm.write_report([data / "count.json"], out=tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(begin)
    with pytest.raises(UsageError, match="its name says no format"):
        write_report([data / "count.json"], out=tmp_path / "a.pdf")


def test_nothing_is_left_where_nothing_can_be_written(data, tmp_path):
    (tmp_path / "r.html").mkdir()
    with pytest.raises(OutputError):
        write_report([data / "count.json"], out=tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_no_record_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no record was given"):
        write_report([], out=tmp_path / "r.html")


def test_it_needs_neither_torch_nor_tvm_nor_numpy(data, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'tvm', 'numpy', 'onnx'): sys.modules[name] = None\n"
        "import tvm_mobilenet as tm\n"
        f"tm.write_report({[str(p) for p in sorted(data.iterdir())]!r}, out={str(tmp_path)!r} + "
        "'/r.html')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "r.html").stat().st_size > 50_000
