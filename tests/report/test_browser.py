from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browser import CHROMIUM, Page
from tvm_mobilenet.report.write import write_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; `make browser` installs it where it may"
)

DESK, TELEPHONE = 1100, 390

CHARTS = """
[...document.querySelectorAll("figure > svg")].filter(s => getComputedStyle(s).display != "none")
  .map(s => { const b = s.getBoundingClientRect();
              return [b.width, b.height, s.querySelectorAll("rect,path,circle").length,
                      parseFloat(getComputedStyle(s.querySelector("text")).fontSize)
                        * b.width / s.viewBox.baseVal.width] })
"""
"""Of each chart that is shown: width, height, number of marks, height of its letters in pixels."""

OUTSIDE = """
[...document.querySelectorAll("figure > svg text")].filter(t => {
  const b = t.getBoundingClientRect(), f = t.ownerSVGElement.getBoundingClientRect();
  return b.width > 0 && (b.left < f.left - 3 || b.right > f.right + 3) }).map(t => t.textContent)
"""
"""Words that stick out of their chart."""


@pytest.fixture(scope="module")
def report(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(sorted(data.iterdir()), out=path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize("width", [DESK, TELEPHONE])
def test_charts_are_drawn_without_an_error(width, page, report):
    page.open(report, width)
    assert page.problems == []
    charts = page.value(CHARTS)
    assert len(charts) == page.value('document.querySelectorAll("figure").length') > 5
    for across, down, marks, letters in charts:
        assert across > 0.8 * min(width, 460) - 60
        assert down > 30
        assert marks > 0
        assert letters > 9


@pytest.mark.parametrize("width", [DESK, TELEPHONE])
def test_nothing_is_wider_than_the_window(width, page, report):
    page.open(report, width)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(OUTSIDE) == []


def test_nothing_is_loaded_but_the_file(page, report):
    page.requests.clear()
    page.open(report, DESK)
    assert {url for url in page.requests if not url.startswith("data:")} == {report.as_uri()}


def test_dark_and_light_differ_and_can_be_read(page, report):
    def luminances(dark: bool) -> tuple[float, float]:
        page.open(report, DESK, dark=dark)
        return tuple(
            sum(
                int(part)
                for part in page.value(f"getComputedStyle(document.body).{of}")[4:-1].split(",")
            )
            for of in ("backgroundColor", "color")
        )  # type: ignore[return-value]

    light_page, light_ink = luminances(False)
    dark_page, dark_ink = luminances(True)
    assert light_page - light_ink > 500
    assert dark_ink - dark_page > 500


def test_a_table_can_be_opened_with_the_keyboard_and_is_in_the_print(page, report):
    page.open(report, DESK)
    page.value('document.querySelector("details:not([open]) > summary").focus()')
    assert page.value("document.activeElement.tagName") == "SUMMARY"
    page.call("Emulation.setEmulatedMedia", media="print")
    hidden = """[...document.querySelectorAll("details td")]
      .filter(c => c.getBoundingClientRect().height == 0).length"""
    assert page.value(hidden) == 0
    assert page.pdf().startswith(b"%PDF")


def test_a_hostile_record_runs_nothing(page, edited, tmp_path):
    def change(content):
        content["model"] = "<script>document.title='taken'</script><img src=x onerror='1()'>"

    path = tmp_path / "hostile.html"
    write_report([edited("measurement.json", change)], out=path)
    page.problems.clear()
    page.open(path, DESK)
    assert page.value("document.title") != "taken"
    assert page.value('document.querySelectorAll("script, img").length') == 0
    assert page.problems == []
