"""Compiling a candidate and finding out what it needs: timed on a device, or counted."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import tvm_mobilenet
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.exploration.candidates import Candidate
from tvm_mobilenet.exploration.journal import Conditions, ProbeRecord
from tvm_mobilenet.targets import TargetSpec

if TYPE_CHECKING:
    from tvm_mobilenet.artifact import Artifact
    from tvm_mobilenet.boards.registry import Board
    from tvm_mobilenet.protocols import Device

__all__ = ["CountingProber", "Prober", "TimingProber"]

_REPEAT = 60
_WARMUP = 15


class Prober(Protocol):
    """What finds out the needs of a candidate."""

    @property
    def conditions(self) -> Conditions:
        """Under which it does."""

    def probe(self, candidate: Candidate) -> ProbeRecord:
        """Compile and measure one candidate."""


def _source(candidate: Candidate, folder: Path) -> str:
    """Return what to compile: the model's name or weights, or a quantized ONNX file of them."""
    model = candidate.model if candidate.weights is None else str(candidate.weights)
    if candidate.dtype == "float32":
        return model
    from tvm_mobilenet.quantize.options import QuantizeOptions
    from tvm_mobilenet.quantize.quantizer import quantize_model

    # No more than it takes to get the graph: scales and biases do not change what is computed.
    quick = QuantizeOptions(method="minmax", equalize=False, bias_correction=False, samples=1)
    path = folder / "quantized.onnx"
    quantize_model(model, "random", out=path, options=quick, sensitivity=False)
    return str(path)


class _Compiling(ABC):
    """Compiles candidates, with random weights where there are none of other widths.

    Time, size and memory do not depend on the weights' values.
    """

    unit: str

    def __init__(self, target: TargetSpec, conditions: Conditions, logs: Path | str | None) -> None:
        self.target = target
        self.conditions = conditions
        self._logs = logs

    def probe(self, candidate: Candidate) -> ProbeRecord:
        """Compile and measure one candidate."""
        from tvm_mobilenet.workflow import compile_model

        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
            artifact = compile_model(
                _source(candidate, Path(folder)),
                out=Path(folder) / "artifact",
                target=self.target,
                keep_onnx=False,
                use_logs=self.conditions.logs,
                logs=self._logs,
            )
            record = ProbeRecord(
                model=candidate.model,
                dtype=candidate.dtype,
                conditions=self.conditions,
                size_bytes=artifact.manifest.library.size_bytes,
                date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
            return self._measured(artifact, record)

    @abstractmethod
    def _measured(self, artifact: Artifact, record: ProbeRecord) -> ProbeRecord:
        """Return the record with what was measured of the artifact."""


class TimingProber(_Compiling):
    """Times candidates on this machine or on a board."""

    def __init__(
        self,
        target: TargetSpec,
        *,
        device: Device | None = None,
        threads: int | None = None,
        cpus: Sequence[int] = (),
        use_logs: bool = True,
        logs: Path | str | None = None,
    ) -> None:
        from tvm_mobilenet.facts import host_facts

        facts = device.facts() if device is not None else host_facts()
        processor = facts.cpu if device is None else f"{device.name}, {facts.cpu}"
        conditions = Conditions(
            target=target.name,
            fingerprint=target.fingerprint(),
            device=processor,
            threads=threads,
            cpus=tuple(cpus),
            unit="ms",
            logs=use_logs,
            tvm_mobilenet=tvm_mobilenet.__version__,
        )
        super().__init__(target, conditions, logs)
        self._device = device

    def _measured(self, artifact: Artifact, record: ProbeRecord) -> ProbeRecord:
        from tvm_mobilenet.measure import measure

        found = measure(
            artifact.path,
            threads=self.conditions.threads,
            cpus=self.conditions.cpus,
            warmup=_WARMUP,
            repeat=_REPEAT,
            device=self._device,
        )
        board = found.board
        if board is not None and board.before is not None and board.before.emulated:
            raise UsageError(
                f"device {board.name}: it is emulated, and its times mean nothing; count "
                "instructions with --emulated and --budget-minstr"
            )
        timing, memory = found.timing, found.memory
        return record.model_copy(
            update={
                "cost": timing.median_ms,
                "low": timing.percentile_ms(25),
                "high": timing.percentile_ms(75),
                "threads": found.threads,
                "peak_bytes": memory.added_bytes if memory else None,
                "warnings": found.warnings,
            }
        )


class CountingProber(_Compiling):
    """Counts candidates' instructions on an emulated board."""

    def __init__(
        self,
        target: TargetSpec,
        board: Board,
        *,
        use_logs: bool = True,
        logs: Path | str | None = None,
    ) -> None:
        cpu = target.emulation.qemu_cpu if target.emulation else "unknown"
        conditions = Conditions(
            target=target.name,
            fingerprint=target.fingerprint(),
            device=f"emulated {cpu}",
            threads=1,
            unit="Minstr",
            logs=use_logs,
            tvm_mobilenet=tvm_mobilenet.__version__,
        )
        super().__init__(target, conditions, logs)
        self._board = board

    def _measured(self, artifact: Artifact, record: ProbeRecord) -> ProbeRecord:
        from tvm_mobilenet.count import count_instructions

        found = count_instructions(artifact, self._board)
        return record.model_copy(update={"cost": found.instructions_per_inference / 1e6})
