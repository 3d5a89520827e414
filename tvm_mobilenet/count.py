"""How many instructions an inference retires on an emulated board, by class and by layer.

It is no time: an emulator does not know how many instructions a processor starts in a cycle, nor
what waits for memory. It is exact and the same at every run, on any machine, so that two kernels
can be compared and a regression of a fraction of a percent be seen without a board.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import tvm_mobilenet
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import DeviceError, SpecError, UsageError
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.records import LayerRecord
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.schedule.integer.isa import products_per_instruction
from tvm_mobilenet.targets import Cpu, TargetSpec

if TYPE_CHECKING:
    from tvm_mobilenet.boards.registry import Board
    from tvm_mobilenet.rpc.board_executor import BoardExecutor

__all__ = ["InstructionCount", "LayerCount", "count_instructions"]

DEFAULT_REPEAT = 2
_STEP_S = 600.0
"""Bound of one call to the board: the emulator is some fifty times slower than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCount:
    """What one kernel call of an inference retires."""

    index: int
    kernel: str
    family: str
    tensor: str | None
    macs: int
    classes: Mapping[str, int]
    floor: float
    """Multiply-add instructions that the layer is worth: its multiply-adds, products of padding
    included, over those that one instruction does."""

    @property
    def instructions(self) -> int:
        """All classes together."""
        return sum(self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "index": self.index,
            "kernel": self.kernel,
            "family": self.family,
            "tensor": self.tensor,
            "macs": self.macs,
            "instructions": self.instructions,
            "classes": dict(self.classes),
            "floor": self.floor,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCount:
    """One artifact counted once."""

    artifact: str
    """Path of the folder."""
    model: str
    target: str
    library_sha256: str
    emulated_cpu: str
    """The emulator's name of the processor."""
    threads: int
    """Always 1: threads that wait for each other spin, and how long is chance."""
    classes: Mapping[str, int]
    """Of one inference: `fma`, `simd`, `load_store`, `branch`, `other`."""
    layers: tuple[LayerCount, ...]
    """In the order of execution; they leave out what calls them."""
    repeat: int
    """How many inferences were counted and found the same."""
    floor: float
    """Multiply-add instructions that the model is worth; see `LayerCount`."""
    date: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]

    @property
    def instructions_per_inference(self) -> int:
        """All classes together."""
        return sum(self.classes.values())

    @property
    def outside_layers(self) -> int:
        """What the virtual machine retires around its kernels: calls and allocation."""
        return self.instructions_per_inference - sum(one.instructions for one in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "artifact": self.artifact,
            "model": self.model,
            "target": self.target,
            "library_sha256": self.library_sha256,
            "emulated_cpu": self.emulated_cpu,
            "threads": self.threads,
            "instructions_per_inference": self.instructions_per_inference,
            "classes": dict(self.classes),
            "floor": self.floor,
            "outside_layers": self.outside_layers,
            "repeat": self.repeat,
            "layers": [one.to_dict() for one in self.layers],
            "date": self.date,
            "versions": dict(self.versions),
        }


def count_instructions(
    artifact: Artifact, board: Board, *, repeat: int = DEFAULT_REPEAT
) -> InstructionCount:
    """Count what one inference of `artifact` retires on an emulated board, with one thread.

    Args:
        artifact: what to count; compiled for the board's target.
        board: an emulated board that runs.
        repeat: inferences to count, 2 or more: they have to agree in every class.

    Raises:
        SpecError: fewer than two repeats.
        UsageError: the artifact is for another target than the board stands for.
        DeviceError: the board has gone, or the inferences do not agree.
    """
    manifest = artifact.manifest
    if repeat < 2:
        raise SpecError(
            f"repeat {repeat}: inferences are counted to see them agree; give 2 or more"
        )
    if manifest.target.name != board.target:
        raise UsageError(
            f"artifact {artifact.path}: it is for {manifest.target.name}, the emulated board "
            f"{board.name} stands for {board.target}; use a board for {manifest.target.name}"
        )
    device = connect(board.address, auth_key_file=board.auth_key_file, timeout_s=_STEP_S)
    with device.open(artifact, threads=1) as executor:
        found = _count(executor, repeat)
        facts = executor.facts_before
    names = [str(name) for name in found["classes"]]
    runs = [dict(zip(names, run, strict=True)) for run in found["runs"]]
    _check_agreement(board, runs)
    target = TargetSpec.model_validate(manifest.target.spec)
    floors = [_floor(layer, target.cpu, manifest.accumulate) for layer in manifest.layers]
    return InstructionCount(
        artifact=str(artifact.path),
        model=manifest.model.name,
        target=manifest.target.name,
        library_sha256=manifest.library.sha256,
        emulated_cpu=target.emulation.qemu_cpu if target.emulation else "unknown",
        threads=1,
        classes=runs[0],
        layers=_layer_counts(manifest, names, found["layers"], floors),
        repeat=len(runs),
        floor=sum(floors),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions={
            "tvm_mobilenet": tvm_mobilenet.__version__,
            "tvm": (facts.tvm if facts else None) or "unknown",
        },
    )


def _count(executor: BoardExecutor, repeat: int) -> dict[str, Any]:
    """Have the agent count; what it returns is described in native/board_agent."""
    count = executor.session.function("count_instructions")
    (inputs,) = seeded(executor.artifact.manifest, 1)
    executor.feed(inputs)
    text = executor.session.call("run", count, executor.vm, "main", executor.symbols, repeat)
    found: dict[str, Any] = json.loads(text)
    return found


def _check_agreement(board: Board, runs: Sequence[Mapping[str, int]]) -> None:
    for number, run in enumerate(runs[1:], start=2):
        for name, value in run.items():
            if value != runs[0][name]:
                raise DeviceError(
                    f"inference {number} retired {value} instructions of class {name}, the first "
                    f"{runs[0][name]}; see that nothing else computes in the same process: does "
                    "the model run with one thread?",
                    device=board.name,
                    step="count",
                )


def _layer_counts(
    manifest: Manifest, names: Sequence[str], rows: Sequence[Sequence[int]], floors: Sequence[float]
) -> tuple[LayerCount, ...]:
    return tuple(
        LayerCount(
            index=layer.index,
            kernel=layer.kernel,
            family=layer.family,
            tensor=layer.tensor,
            macs=layer.macs,
            classes=dict(zip(names, row, strict=True)),
            floor=floor,
        )
        for layer, row, floor in zip(manifest.layers, rows, floors, strict=True)
    )


def _floor(layer: LayerRecord, cpu: Cpu, accumulate: str | None) -> float:
    """Return the multiply-add instructions that a layer is worth."""
    if not layer.family.startswith("int8_"):
        return layer.macs / cpu.lanes(accumulate or "float32")
    return layer.macs / products_per_instruction(cpu)
