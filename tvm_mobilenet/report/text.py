"""A report for pipelines: Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from tvm_mobilenet.report.data import Document, Section, Table
from tvm_mobilenet.report.figures import plain_cell, shown

__all__ = ["render_csv", "render_json", "render_markdown"]

# History of the JSON: 1, the first.
_FORMAT_VERSION = 1


def render_markdown(document: Document) -> str:
    """Return the report as Markdown: what is said, and every table."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    if document.cards:
        rows = [
            f"- **{card.title}**: {_plain(f'{card.value} {card.unit}'.strip())} "
            f"({_plain(card.detail)})"
            for card in document.cards
        ]
        parts.append("\n".join(rows))
    for section in document.sections:
        parts += [f"## {section.title}", _plain(section.lead)]
        if section.notes:
            parts.append("\n".join(f"- note: {_plain(note)}" for note in section.notes))
        parts += [_markdown_table(table) for table in section.tables]
    parts.append(f"Written by tvm-mobilenet {document.version}, {document.date}.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    heads = [
        f"{column.title} ({column.unit})" if column.unit else column.title
        for column in table.columns
    ]
    rules = ["---" if column.style == "text" else "---:" for column in table.columns]
    rows = [
        [_plain(shown(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    lines = [f"### {_plain(table.title)}", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Keep a cell on its line and out of Markdown's and HTML's syntax."""
    for old, new in (("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(old, new)
    return text


def render_json(document: Document) -> str:
    """Return the report as JSON: figures as they were recorded, not rounded."""
    content: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "title": document.title,
        "version": document.version,
        "date": document.date,
        **document.meta,
        "summary": [
            {"title": c.title, "value": c.value, "unit": c.unit, "detail": c.detail}
            for c in document.cards
        ],
        "sections": [_section(section) for section in document.sections],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "lead": section.lead,
        "notes": list(section.notes),
        "tables": [
            {
                "name": table.name,
                "title": table.title,
                "units": {c.name: c.unit for c in table.columns if c.unit and c.unit != "%"},
                "rows": [
                    {
                        column.name: plain_cell(cell)
                        for column, cell in zip(table.columns, row, strict=True)
                    }
                    for row in table.rows
                ],
            }
            for table in section.tables
        ],
    }


def render_csv(document: Document) -> str:
    """Return every table in one: a line for each cell, with its section, table, row and column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("section", "table", "row", "column", "value"))
    for section in document.sections:
        for table in section.tables:
            for number, row in enumerate(table.rows):
                for column, cell in zip(table.columns, row, strict=True):
                    value = plain_cell(cell)
                    if value is not None:
                        writer.writerow((section.name, table.title, number, column.name, value))
    return text.getvalue()
