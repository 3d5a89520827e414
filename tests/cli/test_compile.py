from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import save_tiny_onnx
from tvm_mobilenet.artifact import OutputFolder
from tvm_mobilenet.elf import library_machine
from tvm_mobilenet.models.weights import create_model

MODEL = "mobilenet_v1_0.25_32"


def test_a_users_network_becomes_a_folder(cli, tiny_onnx: Path, tmp_path: Path):
    out = tmp_path / "build"
    result = cli("compile", tiny_onnx, "--target", "rpi4", "-o", out)
    assert result.code == 0, result.err
    assert f"library   {out}/model.so" in result.out
    assert "target    rpi4" in result.out
    assert "compiling for rpi4" in result.err
    assert {path.name for path in out.iterdir()} == {"model.so", "manifest.json", "model.onnx"}
    assert library_machine(out / "model.so") == "aarch64"


def test_the_onnx_file_can_be_left_out(cli, tiny_onnx: Path, tmp_path: Path):
    assert cli("compile", tiny_onnx, "--no-onnx", "--no-logs", "-o", tmp_path / "b").code == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"model.so", "manifest.json"}


def test_random_weights_are_said_to_be_random(cli, tmp_path: Path):
    result = cli("compile", MODEL, "-o", tmp_path / "build")
    assert result.code == 0, result.err
    assert "weights   random (seed 0)" in result.out
    manifest = json.loads((tmp_path / "build/manifest.json").read_text())
    assert manifest["model"]["is_random"]


def corrupt_onnx(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(b"this is no protobuf" * 10)
    return (path,)


def truncated_onnx(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "truncated.onnx"
    save_tiny_onnx(path)
    path.write_bytes(path.read_bytes()[:200])
    return (path,)


def dynamic_onnx(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "dynamic.onnx"
    save_tiny_onnx(path, batch="batch")
    return (path,)


def invented_operator(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "invented.onnx"
    save_tiny_onnx(path, activation="Frobnicate")
    return (path,)


def unsupported_operator(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "unsupported.onnx"
    save_tiny_onnx(path, activation="Det")
    return (path,)


def truncated_weights(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "w.safetensors"
    created = create_model(MODEL, num_classes=10)
    save_file(created.module.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    return (MODEL, "--weights", path)


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def weights_with_code(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "w.pth"
    torch.save({"weight": Harmful()}, path)
    return (MODEL, "--weights", path)


def plain_pickle(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Harmful()))
    return (MODEL, "--weights", path)


def weights_of_another_width(tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "w.safetensors"
    created = create_model("mobilenet_v1_0.5_32", num_classes=10)
    save_file(created.module.state_dict(), path)
    return (MODEL, "--weights", path)


@pytest.mark.parametrize(
    ("request_of", "code", "says"),
    [
        (lambda _: ("mobilenet_v1_0.5_16O",), 2, "did you mean 'mobilenet_v1_0.5_160'"),
        (lambda _: ("mobilenet_v1_0_224",), 2, "alpha is 0"),
        (lambda _: ("mobilenet_v1_1.0_0",), 2, "resolution is 0"),
        (lambda _: ("none.onnx",), 2, "none.onnx"),
        (lambda _: (MODEL, "--target", "rp4"), 2, "did you mean 'rpi4'"),
        (corrupt_onnx, 2, "corrupt.onnx"),
        (truncated_onnx, 2, "truncated.onnx"),
        (dynamic_onnx, 2, "batch"),
        (invented_operator, 2, "Frobnicate"),
        (unsupported_operator, 1, "Det (node 'active_1')"),
        (truncated_weights, 2, "w.safetensors"),
        (weights_with_code, 2, "w.pth"),
        (plain_pickle, 2, "w.pth"),
        (weights_of_another_width, 2, "w.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    cli, tmp_path: Path, monkeypatch, request_of, code, says
):
    monkeypatch.chdir(tmp_path)
    words = request_of(tmp_path)
    before = set(tmp_path.iterdir())
    assert says in cli("compile", *words, "-o", tmp_path / "build").fails(code)
    assert set(tmp_path.iterdir()) == before


def test_no_linker_is_one_line(cli, tiny_onnx: Path, tmp_path: Path):
    words = ("--cc", "no-such-compiler", "-o", tmp_path / "build")
    assert "'no-such-compiler' was not found" in cli("compile", tiny_onnx, *words).fails(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/build", "file/build"])
def test_a_place_that_cannot_be_written(cli, tiny_onnx: Path, tmp_path: Path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert out in cli("compile", tiny_onnx, "-o", out).fails(1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 kB, or a skip where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs permission to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(cli, tiny_onnx: Path, small_disk: Path):
    assert "the disk is full" in cli("compile", tiny_onnx, "-o", small_disk / "build").fails(1)
    assert list(small_disk.iterdir()) == []


def test_of_two_compilations_into_one_folder_one_is_turned_away(
    cli, tiny_onnx: Path, tmp_path: Path
):
    out = tmp_path / "build"
    with OutputFolder(out):
        assert str(out) in cli("compile", tiny_onnx, "-o", out).fails(1)
    assert cli("compile", tiny_onnx, "-o", out).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"build"}


def test_ctrl_c_leaves_nothing_half_written(cli, tiny_onnx: Path, tmp_path: Path, monkeypatch):
    from tvm_mobilenet import toolchain

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(toolchain, "run_compiler", interrupted)
    assert "interrupted" in cli("compile", tiny_onnx, "-o", tmp_path / "build").fails(130)
    assert list(tmp_path.iterdir()) == []
