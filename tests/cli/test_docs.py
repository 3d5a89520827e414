from __future__ import annotations

from pathlib import Path

import pytest
import typer

from tvm_mobilenet.cli.app import app

DOCS = Path(__file__).parents[2] / "docs/cli.md"

HEAD = """\
# The command line

Made from `--help` by `python -m pytest tests/cli/test_docs.py --update-golden`.
"""


def commands(group=None, words=()):
    group = group or typer.main.get_command(app)
    yield words
    for name in getattr(group, "commands", ()):
        yield from commands(group.commands[name], (*words, name))


def test_every_command_shows_a_runnable_example(cli):
    for words in commands():
        if words:
            lines = cli(*words, "--help").out.splitlines()
            assert lines[-2].strip() == "Example:"
            assert lines[-1].strip().startswith(" ".join(("tvm-mobilenet", *words)))


def test_cli_md_is_what_help_says(cli, request: pytest.FixtureRequest):
    parts = [HEAD]
    for words in commands():
        text = cli(*words, "--help").out.strip()
        parts.append(f"## `{' '.join(('tvm-mobilenet', *words))}`\n\n```text\n{text}\n```\n")
    made = "\n".join(parts)
    if request.config.getoption("--update-golden"):
        DOCS.write_text(made)
    assert DOCS.read_text() == made, "docs/cli.md is old; run with --update-golden"
