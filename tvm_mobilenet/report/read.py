"""Records from disk, each known by what it holds and not by its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tvm_mobilenet.artifact import MANIFEST_FILE, RUN_FILE, open_artifact
from tvm_mobilenet.errors import InputFileError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.manifest import Manifest, parse_manifest
from tvm_mobilenet.report.figures import plural
from tvm_mobilenet.report.forms import (
    ComparisonForm,
    CountForm,
    CountsForm,
    ExplorationForm,
    MeasurementForm,
    RunForm,
    TrialForm,
    TuningForm,
    VerificationForm,
)

__all__ = ["KINDS", "Records", "Source", "read_records"]

_Form = TypeVar("_Form", bound=BaseModel)

_MAX_BYTES = 256 << 20
"""Beyond any record: a tuning log of a hundred thousand candidates has 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file that was read."""

    path: str
    kind: str
    date: str
    sha256: str


@dataclass(slots=True)
class Records:
    """Everything that was read, by kind, in the order it was given."""

    measurements: list[MeasurementForm] = field(default_factory=list)
    verifications: list[VerificationForm] = field(default_factory=list)
    runs: list[RunForm] = field(default_factory=list)
    comparisons: list[ComparisonForm] = field(default_factory=list)
    counts: list[CountForm] = field(default_factory=list)
    counted_engines: list[CountsForm] = field(default_factory=list)
    tunings: list[TuningForm] = field(default_factory=list)
    trials: list[TrialForm] = field(default_factory=list)
    explorations: list[ExplorationForm] = field(default_factory=list)
    manifests: list[Manifest] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a JSON record is known, and where it goes."""

    name: str
    keys: frozenset[str]
    """What it has at its top, all of them."""
    form: type[BaseModel]
    into: str
    """Field of `Records`."""


KINDS = (
    _Kind(
        "measurement",
        frozenset({"timing", "host", "library_sha256"}),
        MeasurementForm,
        "measurements",
    ),
    _Kind(
        "instruction count",
        frozenset({"instructions_per_inference", "layers"}),
        CountForm,
        "counts",
    ),
    _Kind("verification", frozenset({"comparisons", "within"}), VerificationForm, "verifications"),
    _Kind("run", frozenset({"timing", "not_run", "training"}), RunForm, "runs"),
    _Kind("tuning report", frozenset({"tasks", "untuned", "log"}), TuningForm, "tunings"),
    _Kind(
        "exploration", frozenset({"candidates", "accuracy_source"}), ExplorationForm, "explorations"
    ),
    _Kind(
        "comparison with peers",
        frozenset({"results", "cpu", "batch"}),
        ComparisonForm,
        "comparisons",
    ),
    _Kind("instructions beside peers", frozenset({"results"}), CountsForm, "counted_engines"),
)
"""The first that fits is taken."""

_WRITERS = (
    "`measure --json`, `verify --json`, `run`, `tune --json`, `explore`, benchmarks/, a tuning "
    "log, or an artifact folder"
)


def read_records(paths: Iterable[Path | str]) -> Records:
    """Read records of any kind that this project writes.

    Args:
        paths: files and folders: JSON of `measure`, `verify`, `run`, `tune`, `explore` and of the
            scripts in benchmarks/; a tuning log, or the folder of some; an artifact folder or its
            manifest; the folder of an exploration.

    Raises:
        InputFileError: a file is missing, damaged, or none of these; it names the file.
        ArtifactError: an artifact folder is incomplete or altered.
    """
    records = Records()
    seen: set[Path] = set()
    for given in paths:
        for path in _files(Path(given)):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _read(path, records)
    return records


def _files(path: Path) -> Iterator[Path]:
    """Return the records of a folder, or the file itself."""
    if not path.is_dir():
        yield path
        return
    if (path / MANIFEST_FILE).is_file():
        open_artifact(path, runnable=False)  # what it says of itself has to be true
        yield path / MANIFEST_FILE
        if (path / RUN_FILE).is_file():
            yield path / RUN_FILE
        return
    found = [file for file in (path / "explore.json",) if file.is_file()]
    found = found or sorted(path.glob("records.jsonl")) or sorted(path.glob("*/records.jsonl"))
    if not found:
        raise InputFileError(
            f"records {path}: the folder is no artifact, no tuning logs and no exploration; "
            "give the files in it that are to be reported"
        )
    yield from found


def _read(path: Path, records: Records) -> None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputFileError(f"records {path}: larger than any record; give another file")
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        reason = (err.strerror or str(err)).lower()
        raise InputFileError(f"records {path}: {reason}; give a file that is there") from err
    except UnicodeDecodeError as err:
        raise InputFileError(f"records {path}: not a text file; give {_WRITERS}") from err
    kind, date = _take_in(path, text, records)
    records.sources.append(Source(path=str(path), kind=kind, date=date, sha256=sha256_of(path)))


def _take_in(path: Path, text: str, records: Records) -> tuple[str, str]:
    """Add what a file holds; return its kind and date."""
    try:
        # A script that divides by nothing writes NaN, which is not JSON: no figure.
        content = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return _tuning_log(path, text, records)
    if isinstance(content, dict) and set(content) == {"check", "record"}:
        return _tuning_log(path, text, records)  # of a single line
    if not isinstance(content, dict):
        raise InputFileError(f"records {path}: no record of this project; give {_WRITERS}")
    if {"schema_version", "library", "layers"} <= set(content):
        manifest = parse_manifest(text, f"records {path}")
        records.manifests.append(manifest)
        return "manifest", ""
    for kind in KINDS:
        if kind.keys <= set(content):
            form = _validated(kind.form, content, f"records {path}: a {kind.name} whose")
            getattr(records, kind.into).append(form)
            if isinstance(form, RunForm) and form.verification is not None:
                records.verifications.append(form.verification)
            return kind.name, str(content.get("date") or "")
    raise InputFileError(f"records {path}: no record of this project; give {_WRITERS}")


def _tuning_log(path: Path, text: str, records: Records) -> tuple[str, str]:
    """Read JSON lines; what is cut short or of another form costs only itself."""
    trials, damaged, whole = [], 0, 0
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            body: Mapping[str, Any] = content["record"]
            kind = body["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
            continue
        whole += 1
        if kind == "trial":
            try:
                trials.append(TrialForm.model_validate(body))
            except ValidationError:
                damaged += 1
    if not whole:
        raise InputFileError(
            f"records {path}: neither JSON nor the lines of a tuning log; give {_WRITERS}"
        )
    if damaged:
        records.notes.append(f"{path}: {plural(damaged, 'damaged line')} left out")
    records.trials.extend(trials)
    return "tuning log", max((trial.conditions.date for trial in trials), default="")


def _validated(form: type[_Form], content: object, where: str) -> _Form:
    try:
        return form.model_validate(content)
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise InputFileError(
            f"{where} field {name} cannot be used: {first['msg']}; write it anew"
        ) from err
