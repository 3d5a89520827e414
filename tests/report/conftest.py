"""Records as the project's commands wrote them, cut short, and edited ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of records; look, do not touch."""
    return DATA


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Write a changed copy of a record and return its path."""

    def edit(name: str, change: Callable[[Any], None], as_name: str = "edited.json") -> Path:
        content = json.loads((DATA / name).read_text(encoding="utf-8"))
        change(content)
        path = tmp_path / as_name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return edit
