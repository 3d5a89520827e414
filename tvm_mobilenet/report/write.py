"""Records in, one report out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, get_args

from tvm_mobilenet import __version__
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.files import new_file
from tvm_mobilenet.report.compare import compare_records, comparison_section
from tvm_mobilenet.report.data import Document, Section
from tvm_mobilenet.report.html import render_html
from tvm_mobilenet.report.read import Records, read_records
from tvm_mobilenet.report.sections.facts import (
    artifact_section,
    devices_section,
    sources_section,
)
from tvm_mobilenet.report.sections.instructions import instructions_section
from tvm_mobilenet.report.sections.latency import series_section, versus_section
from tvm_mobilenet.report.sections.layers import layers_section
from tvm_mobilenet.report.sections.memory import memory_section
from tvm_mobilenet.report.sections.pareto import pareto_section
from tvm_mobilenet.report.sections.parity import parity_section
from tvm_mobilenet.report.sections.summary import cards, subjects
from tvm_mobilenet.report.sections.tuning import tuning_section
from tvm_mobilenet.report.text import render_csv, render_json, render_markdown

__all__ = ["FORMATS", "Format", "build_document", "render", "write_report"]

Format = Literal["html", "md", "json", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SECTIONS = (
    pareto_section,
    versus_section,
    series_section,
    layers_section,
    instructions_section,
    tuning_section,
    parity_section,
    memory_section,
    artifact_section,
    devices_section,
)
"""In the order of the page."""
_RENDERERS = {
    "html": render_html,
    "md": render_markdown,
    "json": render_json,
    "csv": render_csv,
}


def write_report(
    records: Sequence[Path | str],
    *,
    out: Path | str,
    format: Format | None = None,  # noqa: A002, the option's name
    compare: Sequence[Path | str] = (),
    title: str | None = None,
) -> Document:
    """Write a report of records to a file; it appears whole or not at all.

    Args:
        records: files and folders, see `read_records`.
        out: the file to write.
        format: `html`, `md`, `json` or `csv`; None for what `out` ends in.
        compare: older records to say what changed since.
        title: of the report; None for one made of the models.

    Returns:
        What was written, before it was rendered.

    Raises:
        UsageError: no records, an unknown format, or older records that cannot be compared.
        InputFileError: a record is of no use.
        OutputError: the file cannot be written.
    """
    out = Path(out)
    suffix = out.suffix.lower().lstrip(".")
    known = format or {"htm": "html"}.get(suffix, suffix)
    if known not in FORMATS:
        raise UsageError(
            f"output {out}: its name says no format; end it in .html, .md, .json or .csv, or give "
            "--format"
        )
    document = build_document(records, compare=compare, title=title)
    text = render(document, known)
    with new_file(out) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return document


def render(document: Document, format: str) -> str:  # noqa: A002, the option's name
    """Return a report as text in one of `FORMATS`."""
    return _RENDERERS[format](document)


def build_document(
    records: Sequence[Path | str],
    *,
    compare: Sequence[Path | str] = (),
    title: str | None = None,
) -> Document:
    """Read records and make a report of them, without writing it."""
    if not records:
        raise UsageError("report: no record was given; give files that other commands wrote")
    found = read_records(records)
    sections: list[Section] = []
    meta: dict[str, int] = {}
    if compare:
        changes = compare_records(found, read_records(compare))
        sections.append(comparison_section(changes))
        meta["regressions"] = sum(c.verdict == "regressed" and c.is_ours for c in changes)
        meta["improvements"] = sum(c.verdict == "improved" and c.is_ours for c in changes)
    sections += [section for make in _SECTIONS if (section := make(found)) is not None]
    sections.append(sources_section(found))
    return Document(
        title=title or _title(found),
        subtitle=_subtitle(found),
        cards=cards(found),
        sections=tuple(sections),
        version=__version__,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        meta=meta,
    )


def _title(records: Records) -> str:
    models, targets = subjects(records)
    if records.explorations:
        return f"Choice of a MobileNet for {' and '.join(targets[:3])}"
    if not models:
        return f"Tuning for {' and '.join(targets[:3])}" if targets else "Report"
    if len(models) > 2:
        return f"{len(models)} models measured"
    return " and ".join(models)


def _subtitle(records: Records) -> str:
    models, targets = subjects(records)
    machines = [one.cpu for one in records.comparisons]
    machines += [one.host.cpu for one in records.measurements]
    parts = []
    if len(models) > 2:
        parts.append(", ".join(models[:6]) + (" and more" if len(models) > 6 else ""))
    if targets:
        parts.append(f"for {', '.join(targets)}")
    if machines:
        parts.append(f"on {', '.join(dict.fromkeys(machines))}")
    dates = sorted(source.date[:10] for source in records.sources if source.date)
    if dates:
        parts.append(dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")
    return ", ".join(parts) or "of recorded figures"
