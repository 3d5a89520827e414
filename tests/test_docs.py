"""The documents name what is there: paths, links, targets, manifest fields, messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import tvm_mobilenet
from tvm_mobilenet.gpu import Gpu
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.targets import Cpu, Link, TvmOptions, list_targets

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOP_LEVEL = ("tvm_mobilenet", "targets", "tuning_logs", "tests", "docs", "benchmarks", ".ci")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "docs/benchmarks.md", "docs/targets.md"])
def test_every_path_that_a_document_names_exists(document):
    paths = [q for q in _quoted(_text(document)) if re.fullmatch(r"[\w./*-]+", q)]
    paths = [p for p in paths if "/" in p and p.split("/")[0] in TOP_LEVEL]
    assert paths
    missing = [p for p in paths if not list(ROOT.glob(p.rstrip("/")))]
    assert not missing, f"{document} names what is not there"


def test_architecture_has_every_package_and_module():
    text = _text("ARCHITECTURE.md")
    package = ROOT / "tvm_mobilenet"
    names = [
        f"tvm_mobilenet/{path.name}" + ("/" if path.is_dir() else "")
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    missing = [n for n in names if n not in text and not n.endswith(("__init__.py", "__main__.py"))]
    assert not missing, "ARCHITECTURE.md leaves them out"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\[[^\]]+\]\(([^)#\s]+)\)", text)
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not broken


def test_every_shipped_target_is_described():
    quoted = set(_quoted(_text("docs/targets.md")))
    assert set(list_targets()) <= quoted


def test_every_key_of_a_target_file_is_described():
    quoted = set(_quoted(_text("docs/targets.md")))
    sections = (("tvm", TvmOptions), ("link", Link), ("cpu", Cpu), ("gpu", Gpu))
    for section, model in sections:
        for name, field in model.model_fields.items():
            if (section, name) != ("tvm", "kind"):
                assert f"{section}.{field.alias or name}" in quoted


def test_every_field_of_the_manifest_is_described():
    rows = {
        row.split("|")[1].strip(): row
        for row in _text("docs/artifact.md").splitlines()
        if row.startswith("| `")
    }
    fields_of_row = {name: row for names, row in rows.items() for name in _quoted(names)}
    for name, field in Manifest.model_fields.items():
        assert name in fields_of_row
        for record in _records(field.annotation):
            if name == "schedule":
                continue
            missing = set(record.model_fields) - set(_quoted(fields_of_row[name]))
            assert not missing, f"docs/artifact.md: {name}"


def _records(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in _records(part)]


@cache
def _literals() -> str:
    """Return every string that the package's source holds, one a line."""
    trees = (
        ast.parse(path.read_text(encoding="utf-8"))
        for path in (ROOT / "tvm_mobilenet").rglob("*.py")
    )
    return "\n".join(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_every_message_that_is_explained_can_occur():
    rows = [r for r in _text("docs/troubleshooting.md").splitlines() if r.startswith("| `")]
    messages = [_quoted(row)[0] for row in rows]
    assert len(messages) > 10
    gone = [message for message in messages if message not in _literals()]
    assert not gone, "docs/troubleshooting.md explains what no longer occurs"


def test_the_changelog_has_the_form_of_keep_a_changelog():
    headings = re.findall(r"^## (.+)$", _text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", h) for h in headings[1:])


def test_every_call_and_command_in_the_readme_exists():
    quoted = _quoted(_text("README.md"))
    calls = [match[1] for q in quoted if (match := re.match(r"tm\.(\w+)\(", q))]
    assert calls
    assert set(calls) <= set(tvm_mobilenet.__all__)
    commands = {q.split()[1] for q in quoted if q.startswith("tvm-mobilenet ")}
    documented = set(re.findall(r"^## `tvm-mobilenet (\w+)", _text("docs/cli.md"), re.MULTILINE))
    assert commands
    assert commands <= documented
