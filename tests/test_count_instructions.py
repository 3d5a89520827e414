"""Counting beside peers: what the marks mean, the table, and our side of it under the emulator."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import count_instructions as counting
from benchmarks.absence import EngineUnavailableError
from benchmarks.arm_python import arm_python
from benchmarks.cases import onnx_file, quantize
from benchmarks.counting import inference_classes
from tvm_mobilenet.boards.sysroot import missing_packages
from tvm_mobilenet.targets import load_target

needs_emulator = pytest.mark.skipif(
    bool(missing_packages()), reason=f"not installed: {', '.join(missing_packages())}"
)


def record(op: int, slot: int, *classes: int) -> bytes:
    return struct.pack("<7Q", op, slot, *classes)


def test_an_inference_is_half_of_what_three_retire_more_than_one() -> None:
    # 10 instructions of each call lie around the inferences, whose classes are 100, 20, 30, 4, 5.
    records = record(1, 1, 0, 0, 0, 0, 0) + record(2, 1, 100, 20, 30, 4, 15)
    records += record(1, 2, 100, 20, 30, 4, 15) + record(2, 2, 400, 80, 120, 16, 40)
    classes = inference_classes(records)
    assert classes == {"fma": 100, "simd": 20, "load_store": 30, "branch": 4, "other": 5}


@pytest.mark.parametrize("marks", [[(1, 1), (2, 1)], [(1, 1), (1, 2), (2, 1), (2, 2)], []])
def test_marks_that_do_not_pair_up_are_refused(marks: list[tuple[int, int]]) -> None:
    records = b"".join(record(op, slot, 0, 0, 0, 0, 0) for op, slot in marks)
    with pytest.raises(EngineUnavailableError, match="expected is a pair for slots 1 and 2"):
        inference_classes(records)


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert counting.main(["nowhere.onnx"]) == 2
    assert capsys.readouterr().err == "count_instructions: nowhere.onnx: no such file\n"


@needs_emulator
def test_a_wrong_output_is_absent_from_the_table(colour_onnx: Path) -> None:
    case = counting.prepare("colour.onnx", colour_onnx, load_target("rpi4"))
    count = counting.Count("ncnn", "1", classes=dict.fromkeys(counting.CLASSES, 7))
    (exact,) = case.reference.outputs
    right = counting._checked(case, count, exact)
    assert right.instructions == 35
    wrong = counting._checked(case, count, exact + 1)
    assert "its output differs: relative L2" in wrong.absence
    table = counting.render(case, [right, wrong]).splitlines()
    assert "absent" not in table[-2]
    assert "absent: its output differs" in table[-1]


@needs_emulator
@pytest.mark.parametrize(("target", "products"), [("rpi4", 8), ("rpi5", 16)])
def test_int8_is_counted_in_steps_over_a_floor_of_its_own(
    colour_onnx: Path, tmp_path: Path, target: str, products: int
) -> None:
    file = tmp_path / "colour.onnx"
    file.write_bytes(colour_onnx.read_bytes())
    case = counting.prepare("colour.onnx", quantize(file), load_target(target), "int8")
    assert case.floor == case.graph.macs / products
    assert case.reference.steps is not None
    count = counting.Count("litert", "1", classes=dict.fromkeys(counting.CLASSES, 7))
    (exact,) = case.reference.outputs
    good = counting._checked(case, count, exact + np.float32(case.reference.steps[0]))
    assert "  1.0    1" in counting.render(case, [good]).splitlines()[-1]


@pytest.mark.arm
@needs_emulator
def test_ours_computes_the_same_under_the_emulator_and_counts_alike_twice(
    colour_onnx: Path,
) -> None:
    case = counting.prepare("colour.onnx", colour_onnx, load_target("rpi4"))
    first, second = counting.count_ours(case), counting.count_ours(case)
    assert not first.absence
    assert first.classes == second.classes
    assert first.classes["fma"] > 0.9 * case.floor


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.arm
@needs_emulator
@pytest.mark.parametrize(
    ("model", "target", "most"),
    [
        ("mobilenet_v1_1.0_224", "rpi4", 172.0e6),
        ("mobilenet_v1_0.25_128", "rpi4", 5.0e6),
        ("mobilenet_v1_0.75_160", "rpi3", 60.0e6),
    ],
)
def test_computed_schedules_need_few_instructions(
    tmp_path: Path, model: str, target: str, most: float
) -> None:
    onnx = onnx_file(model, tmp_path)
    case = counting.prepare(model, onnx, load_target(target))
    count = counting.count_ours(case)
    assert not count.absence
    assert count.instructions <= most


@pytest.mark.slow
@pytest.mark.arm
@needs_emulator
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get: not a Debian-like system")
@pytest.mark.parametrize("peer", ["mnn", "litert"])
def test_a_peer_computes_the_same_under_the_emulator(colour_onnx: Path, peer: str) -> None:
    try:
        arm_python()
    except EngineUnavailableError as err:
        pytest.skip(f"no AArch64 Python here: {err}")
    case = counting.prepare("colour.onnx", colour_onnx, load_target("rpi4"))
    count = counting.count_peer(case, peer)
    assert not count.absence
    assert count.classes["fma"] > 0.5 * case.floor
