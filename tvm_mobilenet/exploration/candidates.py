"""The models to choose among: every published one, or those that the user has accuracies of."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.errors import (
    InputFileError,
    SpecError,
    UsageError,
    WeightsError,
    suggestion,
)
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.models.spec import FAMILIES, MODELS, ModelSpec, get_model_spec
from tvm_mobilenet.models.weight_file import describe_weights, weight_shapes

__all__ = ["DTYPES", "PUBLISHED", "Candidate", "list_candidates"]

DTYPES = ("float32", "int8")
"""What can be compiled of a model's name: int8 by way of `quantize_model`."""
_WEIGHT_BYTES = {"float32": 4, "int8": 1}

PUBLISHED = "published ImageNet top-1 of the authors' own weights"

_CLASSIFIER = re.compile(r"mobilenet_(v\d+)(?:_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model that could be chosen."""

    model: str
    family: str
    dtype: str
    accuracy: float
    """Top-1, percent."""
    macs: int
    weight_bytes: int
    """Of the weights alone: what its library cannot be smaller than."""
    weights: Path | None = None
    """A weight file to compile, where channels were taken out of it; None for random weights, which
    need the same time, size and memory."""

    @property
    def name(self) -> str:
        """The model's, and its dtype where that is not float32."""
        return self.model if self.dtype == "float32" else f"{self.model} {self.dtype}"


def list_candidates(
    families: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    accuracy: Path | str | None = None,
) -> list[Candidate]:
    """Return the models to choose among, the most accurate first.

    Args:
        families: `v1`, `v2`, ... or whole names such as `mobilenet_v3_small`; None for all.
        dtypes: each model is a candidate in each of these.
        accuracy: a CSV file with the columns `model` and `accuracy` (percent), and `dtype` where
            there is more than one; a model is a name, or a weight file that `train --prune` wrote,
            beside the CSV file. None for the published accuracies.

    Raises:
        SpecError: a family or dtype that there is not.
        InputFileError: the file cannot be used; it names the line.
    """
    known = [name for name in FAMILIES if _CLASSIFIER.match(name)]
    wanted = _wanted_families(families, known)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise SpecError(
                f"dtype {dtype!r}: models are compiled in {', '.join(DTYPES)}"
                f"{suggestion(dtype, DTYPES)}"
            )
    if accuracy is not None:
        found = _of_file(Path(accuracy), wanted, dtypes)
    else:
        found = [
            _candidate(spec, dtype, top1)
            for spec in MODELS.values()
            for dtype in dtypes
            if spec.family in wanted and (top1 := _published(spec, dtype)) is not None
        ]
    if not found:
        where = f"accuracy {accuracy}" if accuracy is not None else "families"
        raise SpecError(f"{where}: no model of {', '.join(wanted)} is in it")
    return sorted(found, key=lambda one: (-one.accuracy, one.macs))


def _published(spec: ModelSpec, dtype: str) -> float | None:
    figures = spec.published
    if figures is None:
        return None
    return figures.top1_int8 if dtype == "int8" else figures.top1


def _wanted_families(families: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if families is None:
        return list(known)
    wanted: list[str] = []
    shorts = sorted({match[1] for name in known if (match := _CLASSIFIER.match(name))})
    for word in families:
        of_word = [name for name in known if name == word or _short(name) == word]
        if not of_word:
            raise SpecError(
                f"family {word!r}: give {', '.join(shorts)}, or a whole name such as {known[0]}"
                f"{suggestion(word, [*shorts, *known])}"
            )
        wanted += of_word
    return list(dict.fromkeys(wanted))


def _short(name: str) -> str:
    match = _CLASSIFIER.match(name)
    return match[1] if match else ""


def _candidate(spec: ModelSpec, dtype: str, accuracy: float) -> Candidate:
    return Candidate(
        model=spec.name,
        family=spec.family,
        dtype=dtype,
        accuracy=accuracy,
        macs=spec.macs(),
        weight_bytes=_WEIGHT_BYTES[dtype] * spec.params(),
    )


def _of_file(path: Path, wanted: Sequence[str], dtypes: Sequence[str]) -> list[Candidate]:
    """Read the user's own accuracies; families and dtypes not wanted are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else "not a text file"
        raise InputFileError(
            f"accuracy {path}: {reason.lower()}; give a CSV file with the columns model,accuracy"
        ) from err
    reader = csv.DictReader(lines)
    if not {"model", "accuracy"} <= set(reader.fieldnames or ()):
        raise InputFileError(
            f"accuracy {path}: its first line is {','.join(reader.fieldnames or ()) or 'empty'}; "
            "name the columns model,accuracy in it"
        )
    found: dict[tuple[str, str], Candidate] = {}
    for row in reader:
        where = f"accuracy {path}: line {reader.line_num}"
        name = (row["model"] or "").strip()
        try:
            spec, weights = _named(name, path.parent)
        except UsageError as err:
            raise InputFileError(f"{where}: {err}") from err
        dtype = (row.get("dtype") or "float32").strip()
        if spec.family not in wanted or dtype not in dtypes:
            continue
        if (name, dtype) in found:
            raise InputFileError(f"{where}: {name} is there twice; leave one of them out")
        accuracy = _percent(row["accuracy"], where)
        found[name, dtype] = (
            _candidate(spec, dtype, accuracy)
            if weights is None
            else _pruned(spec, dtype, accuracy, weights)
        )
    return list(found.values())


def _named(name: str, folder: Path) -> tuple[ModelSpec, Path | None]:
    """Return the model that a line names, and its file where it is a weight file."""
    if not name.endswith(".safetensors"):
        return get_model_spec(name), None
    path = folder / name
    description = describe_weights(path)
    if description is None:
        raise WeightsError(f"weights {path}: the file does not say which model it is for")
    return get_model_spec(description.model), path


def _pruned(spec: ModelSpec, dtype: str, accuracy: float, weights: Path) -> Candidate:
    """Describe a model of other widths than its name says, which its tensors' shapes tell."""
    shapes = weight_shapes(weights)
    macs = 0
    for layer in spec.layers():
        shape = shapes.get(f"{layer.name}.conv.weight", shapes.get(f"{layer.name}.weight", ()))
        macs += math.prod(shape) * layer.out_size**2 if shape else 0
    return Candidate(
        # Another file of the same name is another model, also to a journal.
        model=f"{spec.name}@{weights.name}-{sha256_of(weights)[:8]}",
        family=spec.family,
        dtype=dtype,
        accuracy=accuracy,
        macs=macs,
        weight_bytes=_WEIGHT_BYTES[dtype] * sum(map(math.prod, shapes.values())),
        weights=weights,
    )


def _percent(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise InputFileError(f"{where}: accuracy is {text!r}; give percent, from 0 to 100")
    return value
