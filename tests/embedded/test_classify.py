"""The prebuilt program of a bundle: the numbers of `verify`, the classes of `classify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.embedded.conftest import Place
from tvm_mobilenet.artifact import open_artifact
from tvm_mobilenet.classify import classify
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import image_inputs, seeded

# Another order of additions; the outputs are up to 8 or so.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def executor(colour_dir: Path) -> Iterator[LocalExecutor]:
    with LocalExecutor(open_artifact(colour_dir), 1) as opened:
        yield opened


def logits(text: str) -> np.ndarray:
    return np.array([float(line) for line in text.split()], np.float32)


def picture(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    rng = np.random.default_rng([width, height])
    shape = (height, width) if mode == "L" else (height, width, 3)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_raw_inputs_give_the_numbers_of_the_executor(place, executor, tmp_path, threads):
    import os

    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("this machine has one processor")
    for inputs in seeded(executor.artifact.manifest, 3):
        file = tmp_path / "x.bin"
        file.write_bytes(inputs["x"].tobytes())
        said = place.classify(place.model, "--logits", "--threads", threads, "--raw", file)
        expected = executor.run(inputs)["y"].ravel()
        assert np.abs(logits(said.stdout) - expected).max() <= TOLERANCE
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("suffix", [".ppm", ".bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(32, 32), (47, 61), (201, 33), (31, 257), (5, 3)])
def test_pictures_give_the_numbers_of_the_executor(place, executor, tmp_path, size, mode, suffix):
    suffix = ".pgm" if (suffix, mode) == (".ppm", "L") else suffix
    width, height = size
    path = picture(tmp_path / f"picture{suffix}", width, height, mode)
    said = place.classify(place.model, "--logits", path)
    ((inputs, _),) = image_inputs(executor.artifact.manifest, [path])
    expected = executor.run(inputs)["y"].ravel()
    assert np.abs(logits(said.stdout) - expected).max() <= TOLERANCE


def test_the_classes_are_those_of_classify(place: Place, colour_dir: Path, tmp_path: Path):
    paths = []
    for name, colour in {"red": (220, 30, 40), "blue": (10, 70, 180)}.items():
        paths.append(tmp_path / f"{name}.bmp")
        Image.new("RGB", (50, 71), colour).save(paths[-1])
    said = place.classify(place.model, *paths, "--top", 2).stdout.splitlines()
    assert [said[0], said[3]] == [str(path) for path in paths]
    for start, prediction in zip((1, 4), classify(colour_dir, paths, top=2), strict=True):
        for line, guess in zip(said[start : start + 2], prediction.guesses, strict=True):
            percent, sign, index, label = line.split()
            assert (sign, int(index), label) == ("%", guess.index, guess.label)
            assert float(percent) == pytest.approx(100 * guess.probability, abs=0.006)
    assert [said[1].split()[-1], said[4].split()[-1]] == ["red", "blue"]


def test_it_tells_what_the_model_is(place: Place):
    said = place.classify(place.model, "--describe").stdout
    assert "model    colour\n" in said
    assert f"target   {place.target}\n" in said
    assert "classes  3\n" in said
    assert "input    x: float32 1x3x32x32 NCHW\n" in said
    assert "output   y: float32 1x3 any\n" in said


def test_figures_come_as_json(place: Place, tmp_path: Path):
    path = picture(tmp_path / "p.ppm", 40, 40)
    said = place.classify(place.model, path, "--repeat", 7, "--stats", "--cpus", 0).stdout
    stats = json.loads(said.splitlines()[1])
    assert stats["repeat"] == 7
    assert stats["threads"] == 1
    assert 0 < stats["min_ms"] <= stats["median_ms"]
    assert stats["peak_bytes"] > 1 << 20


def truncate_library(model: Path) -> None:
    data = (model / "model.so").read_bytes()
    (model / "model.so").write_bytes(data[: len(data) // 2])


def empty_library(model: Path) -> None:
    (model / "model.so").write_bytes(b"")


def alter_library(model: Path) -> None:
    data = bytearray((model / "model.so").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "model.so").write_bytes(data)


def foreign_library(model: Path) -> None:
    # e_machine: 243 is RISC-V.
    data = bytearray((model / "model.so").read_bytes())
    data[18:20] = (243).to_bytes(2, "little")
    (model / "model.so").write_bytes(data)


def no_library(model: Path) -> None:
    (model / "model.so").unlink()


def library_is_a_folder(model: Path) -> None:
    (model / "model.so").unlink()
    (model / "model.so").mkdir()


def text_as_library(model: Path) -> None:
    (model / "model.so").write_text("this is no library, but long enough to be looked at\n")


def truncate_description(model: Path) -> None:
    data = (model / "model.txt").read_bytes()
    (model / "model.txt").write_bytes(data[:-20])


def alter_description(model: Path) -> None:
    text = (model / "model.txt").read_text()
    (model / "model.txt").write_text(text.replace("class red", "class rod"))


def no_description(model: Path) -> None:
    (model / "model.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_library, "model.so is truncated: "),
        (empty_library, "model.so: not an ELF shared library"),
        (alter_library, "model.so is altered: sha256 "),
        (foreign_library, "model.so: the library is for riscv, this program is for "),
        (no_library, "model.so: cannot be read: No such file or directory"),
        (library_is_a_folder, "model.so: cannot be read: Is a directory"),
        (text_as_library, "model.so: not an ELF shared library"),
        (truncate_description, "model.txt is truncated: it has no last line"),
        (alter_description, "model.txt is altered: its last line is not the hash"),
        (no_description, "model.txt: cannot be read: No such file or directory"),
    ],
)
def test_damage_is_told_before_anything_is_loaded(place, copy_of_model, tmp_path, damage, message):
    path = picture(tmp_path / "p.ppm", 40, 40)
    damage(copy_of_model)
    result = place.classify(copy_of_model, path, code=1)
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.arm
def test_a_library_for_another_machine_is_refused(host_place, arm_place, tmp_path):
    path = picture(tmp_path / "p.ppm", 40, 40)
    for place, other in ((host_place, arm_place), (arm_place, host_place)):
        result = place.classify(other.model, path, code=1)
        machines = [open_artifact(p.model, runnable=False) for p in (other, place)]
        names = [artifact.manifest.library.machine for artifact in machines]
        assert f"the library is for {names[0]}, this program is for {names[1]}" in result.stderr


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_a_raw_file_of_another_size_is_refused(place: Place, tmp_path: Path, change: int):
    size = 3 * 32 * 32 * 4
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(size + change))
    result = place.classify(place.model, "--raw", file, code=1)
    given = min(size + change, size + 1)
    assert f"input 'x': {given} bytes were given, float32 1x3x32x32 takes {size}" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture of a kind that is known"),
        (b"P6 10 10 255\n" + bytes(299), "it is truncated"),
        (b"P6 10 10 65535\n" + bytes(600), "more than 8 bits a value"),
        (b"P6 99999999 99999999 255\n", "too many pixels"),
        (b"P6 0 10 255\n", "the picture is empty"),
        (b"P6 ten 10 255\n", "its header is damaged"),
        (b"BM" + bytes(20), "it is truncated"),
        (b"BM" + bytes(200), "its header is damaged"),
        (b"\xff\xd8\xff\xe0 and so on", "built without libjpeg"),
        (b"\x89PNG\r\n\x1a\n and so on", "built without libpng"),
    ],
)
def test_what_is_no_picture_is_refused(host_place: Place, tmp_path: Path, content, message):
    file = tmp_path / "picture"
    file.write_bytes(content)
    result = host_place.classify(host_place.model, file, code=1)
    assert result.stderr.startswith(f"classify: {file}: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("model",),
        ("model", "--top"),
        ("model", "--top", "0", "p.ppm"),
        ("model", "--threads", "two", "p.ppm"),
        ("model", "--cpus", "0,x", "p.ppm"),
        ("model", "--no-such-option", "p.ppm"),
        ("model", "--describe", "p.ppm"),
    ],
)
def test_a_wrong_command_line_shows_the_usage(host_place: Place, words):
    assert "usage: classify MODEL" in host_place.classify(*words, code=2).stderr


def test_it_runs_where_it_was_copied_to(place: Place, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(place.root / "bin", moved / "bin")
    shutil.copytree(place.root / "lib", moved / "lib")
    (moved / "bin/classify").chmod(0o755)
    assert "colour" in place.run(moved / "bin/classify", place.model, "--describe").stdout
