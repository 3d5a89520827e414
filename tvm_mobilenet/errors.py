"""Every error this package raises on purpose, and the exit code each one ends the command with.

    TvmMobilenetError                                exit 1
      UsageError                                     exit 2   the request itself is wrong
        UnknownModelError, UnknownTargetError, SpecError
        InputFileError                                        a file of the user's is of no use
          WeightsError, ImageError, OnnxFileError
      TrainError  ExportError
      FrontendError
        UnsupportedOpError
      PassError
        PreconditionError, PostconditionError
      TuningError
      CompileError
        ToolchainError
      OutputError                                             the result cannot be written
      ArtifactError
        ManifestMismatchError
      ParityError                                    exit 3   outputs disagree; holds the statistics
      DeviceError                                    exit 4   the device cannot be used
        DeviceUnreachableError, DeviceTimeoutError, SessionEndedError

A message has three parts: what was asked, what was found, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "ArtifactError",
    "CompileError",
    "DeviceError",
    "DeviceTimeoutError",
    "DeviceUnreachableError",
    "ExportError",
    "FrontendError",
    "ImageError",
    "InputFileError",
    "ManifestMismatchError",
    "OnnxFileError",
    "OutputError",
    "ParityError",
    "PassError",
    "PostconditionError",
    "PreconditionError",
    "QuantizeError",
    "SessionEndedError",
    "SpecError",
    "ToolchainError",
    "TrainError",
    "TuningError",
    "TvmMobilenetError",
    "UnknownModelError",
    "UnknownTargetError",
    "UnsupportedOpError",
    "UsageError",
    "WeightsError",
    "error_context",
    "suggestion",
]


class TvmMobilenetError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_code: what the command line ends with.
        stage, model, target: filled in by `error_context` as the error passes through.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.stage: str | None = None
        self.model: str | None = None
        self.target: str | None = None


class UsageError(TvmMobilenetError):
    """The request is wrong: a name, a value or a file that the user gave."""

    exit_code = 2


class UnknownModelError(UsageError):
    """No model of that name; the message suggests the closest one."""


class UnknownTargetError(UsageError):
    """No target of that name and no target file at that path."""


class SpecError(UsageError):
    """A field holds a value that is not allowed; the message names field, value and what is."""


class InputFileError(UsageError):
    """A file that the user gave cannot be used."""


class WeightsError(InputFileError):
    """A weight file is damaged, unsafe, or belongs to another model."""


class ImageError(InputFileError):
    """A file that should be a picture is not one that Pillow can read."""


class OnnxFileError(InputFileError):
    """An ONNX file is damaged, or its shapes are not fixed."""


class TrainError(TvmMobilenetError):
    """Training could not go on (loss not finite, checkpoint of another model, ...)."""


class ExportError(TvmMobilenetError):
    """The exported ONNX model does not check, or does not compute what PyTorch does."""


class FrontendError(TvmMobilenetError):
    """The ONNX graph could not be imported."""


class UnsupportedOpError(FrontendError):
    """The graph holds an operator that cannot be handled; the message names it and its node."""


class PassError(TvmMobilenetError):
    """A graph rewrite failed."""


class PreconditionError(PassError):
    """A rewrite was given a module that it does not accept."""


class PostconditionError(PassError):
    """A rewrite did not establish what it promises."""


class QuantizeError(TvmMobilenetError):
    """A model cannot be quantized as it was asked for."""


class TuningError(TvmMobilenetError):
    """A search could not be carried out at all."""


class CompileError(TvmMobilenetError):
    """No library could be made of the module."""


class ToolchainError(CompileError):
    """The linker is missing or failed."""


class OutputError(TvmMobilenetError):
    """The result cannot be written: no permission, no space, or another writer at work."""


class ArtifactError(TvmMobilenetError):
    """An artifact folder is incomplete, altered, or cannot be loaded here."""


class ManifestMismatchError(ArtifactError):
    """The manifest and the files beside it do not belong together."""


class ParityError(TvmMobilenetError):
    """Two implementations of one model disagree beyond the threshold.

    Attributes:
        statistics: the numbers behind the verdict, as JSON-ready values.
    """

    exit_code = 3

    def __init__(self, message: str, statistics: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.statistics = statistics or {}


class DeviceError(TvmMobilenetError):
    """The device cannot be used.

    Attributes:
        device: which one, as it is named in the message; None where there is none yet.
        step: what was being done: `connect`, `queue`, `handshake`, `upload`, `load`, `run`, ...
        found: the message without these two.
    """

    exit_code = 4

    def __init__(self, message: str, *, device: str | None = None, step: str | None = None) -> None:
        named = [part for part in (device and f"device {device}", step) if part]
        super().__init__(": ".join([*named, message]))
        self.device = device
        self.step = step
        self.found = message


class DeviceUnreachableError(DeviceError):
    """Nothing answers where the device should be, or what answered has gone."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer in time."""


class SessionEndedError(DeviceError):
    """The device ended what it was doing for us, and said why: a crash, or a limit."""


@contextmanager
def error_context(
    *, stage: str | None = None, model: str | None = None, target: str | None = None
) -> Iterator[None]:
    """Attach stage, model and target to any `TvmMobilenetError` that passes through.

    The innermost context wins: a value already set is kept.
    """
    try:
        yield
    except TvmMobilenetError as err:
        err.stage = err.stage or stage
        err.model = err.model or model
        err.target = err.target or target
        raise


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
