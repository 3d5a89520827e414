"""Running command lines inside the test's own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tvm_mobilenet.cli.app import run_command


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def fails(self, code: int) -> str:
        """Check that this ended with `code` and one line of error; return that line."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.strip().splitlines()
        assert lines, "nothing was said"
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("error: ")


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capfd, monkeypatch) -> Cli:
    """Run a command line given as words; what it wrote and its exit code come back."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = run_command([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return run
