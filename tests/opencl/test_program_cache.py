"""Built programs on disk: found again, and never believed when they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm

from tests.opencl.modules import BUFFER, Kernel, buffer, make

pytestmark = pytest.mark.opencl

SOURCE = """// Function: count
__kernel void count(__global int* x) { x[get_global_id(0)] = STEP * get_global_id(0); }
"""


@pytest.fixture
def folder(device, monkeypatch, tmp_path: Path) -> Path:
    path = tmp_path / "made" / "when needed"
    monkeypatch.setenv("TVM_MOBILENET_OPENCL_CACHE", str(path))
    return path


def run(device, step: int = 3) -> None:
    """Make the module anew, build it, and see that it computes."""
    module = make(SOURCE.replace("STEP", str(step)), count=Kernel((BUFFER,)))
    x = tvm.runtime.tensor(np.zeros(8, "int32"), device)
    module["count"](buffer(x), 2, 4)
    assert np.array_equal(x.numpy(), step * np.arange(8))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_a_program_is_kept_and_found_again(device, folder: Path):
    run(device)
    (kept,) = files(folder)
    assert kept.suffix == ".clbin"
    assert kept.stat().st_mode & 0o077 == 0
    before = kept.stat()
    run(device)
    assert files(folder) == [kept]
    assert kept.stat().st_mtime_ns == before.st_mtime_ns  # read, not written again
    assert kept.stat().st_ino == before.st_ino


def test_another_source_and_other_options_are_other_programs(device, folder: Path, monkeypatch):
    run(device, 3)
    run(device, 4)
    assert len(files(folder)) == 2
    monkeypatch.setenv("TVM_MOBILENET_OPENCL_OPTIONS", "-cl-mad-enable")
    run(device, 4)
    assert len(files(folder)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:31] + bytes([data[31] ^ 1]) + data[32:],
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: b"Not this at all" * 50,
    ],
    ids=["empty", "header cut", "cut", "longer", "digest", "content", "other"],
)
def test_a_damaged_file_is_built_anew(device, folder: Path, damage):
    run(device)
    (kept,) = files(folder)
    good = kept.read_bytes()
    kept.write_bytes(damage(good))
    run(device)
    assert files(folder) == [kept]
    assert kept.read_bytes()[:63] == good[:63] or len(kept.read_bytes()) > 63
    before = kept.stat().st_mtime_ns
    run(device)
    assert kept.stat().st_mtime_ns == before  # and is whole again


def test_a_program_of_another_key_is_not_taken(device, folder: Path):
    run(device, 3)
    (first,) = files(folder)
    run(device, 4)
    (second,) = set(files(folder)) - {first}
    second.write_bytes(first.read_bytes())
    run(device, 4)


def test_a_binary_that_the_driver_refuses_is_built_anew(device, folder: Path):
    import hashlib

    run(device)
    (kept,) = files(folder)
    data = kept.read_bytes()
    magic, key = data[:31], data[63:95]
    body = key + b"no program of any driver"
    kept.write_bytes(magic + hashlib.sha256(body).digest() + body)
    run(device)
    assert len(kept.read_bytes()) > 200


def test_a_file_that_others_may_write_is_not_read(device, folder: Path):
    run(device)
    (kept,) = files(folder)
    before = kept.stat().st_ino
    kept.chmod(0o666)
    run(device)
    assert kept.stat().st_ino != before
    assert kept.stat().st_mode & 0o077 == 0


def test_without_a_place_nothing_is_kept(device, folder: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TVM_MOBILENET_OPENCL_CACHE", "")
    run(device)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("TVM_MOBILENET_OPENCL_CACHE", str(blocked / "below"))
    run(device)
    assert files(folder) == []
    assert blocked.read_text() == "in the way"


def test_the_place_follows_the_users_cache_folder(device, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("TVM_MOBILENET_OPENCL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(device)
    assert len(files(tmp_path / "tvm-mobilenet" / "opencl")) == 1
