from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.boards.agents import Program, native_target
from tvm_mobilenet.boards.archive import TOP_FOLDER, build_agent, bundle_board
from tvm_mobilenet.elf import library_machine
from tvm_mobilenet.errors import OutputError, UsageError
from tvm_mobilenet.targets import load_target

EXPECTED = {
    "agent",
    "README",
    "start.sh",
    "tvm-mobilenet-board.service",
    "lib/libtvm_ffi.so",
    "lib/libtvm_runtime.so",
    "sidelibs/libtvm_runtime_extra.so",
    "licenses/TVM-LICENSE",
    "licenses/TVM-NOTICE",
}


def unpacked(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    assert top.name == TOP_FOLDER
    return top


@pytest.mark.arm
def test_the_archive_of_a_board(tmp_path: Path):
    made = bundle_board(load_target("rpi4"), tmp_path / "one.tar.gz")
    again = bundle_board(load_target("rpi4"), tmp_path / "two.tar.gz")
    assert made.sha256 == again.sha256
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    assert made.size_bytes < 10e6
    assert set(made.files) == EXPECTED
    top = unpacked(made.path, tmp_path / "board")
    assert {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()} == EXPECTED
    for name in EXPECTED:
        if name == "agent" or name.endswith(".so"):
            assert library_machine(top / name) == "aarch64"
    assert len((top / "README").read_text().splitlines()) == 10
    assert str(Path.home()).encode() not in (top / "agent").read_bytes()


@pytest.mark.arm
def test_nothing_in_it_needs_a_newer_glibc(tmp_path: Path):
    made = bundle_board(load_target("rpi4"), tmp_path / "board.tar.gz")
    top = unpacked(made.path, tmp_path / "board")
    newest = (0, 0)
    for path in (top / name for name in EXPECTED if name == "agent" or name.endswith(".so")):
        for version in re.findall(rb"GLIBC_(\d+)\.(\d+)", path.read_bytes()):
            newest = max(newest, (int(version[0]), int(version[1])))
    assert (2, 17) <= newest <= (2, 28)


def test_the_start_script_runs_from_anywhere_and_passes_options(native: Program, tmp_path: Path):
    made = bundle_board(native_target(), tmp_path / "board.tar.gz")
    top = unpacked(made.path, tmp_path / "a folder with spaces")
    result = subprocess.run(
        [top / "start.sh", "--facts"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.startswith('{"cpu":')


def test_the_service_listens_at_loopback_and_survives_a_full_memory(tmp_path: Path):
    made = bundle_board(native_target(), tmp_path / "board.tar.gz")
    unit = (unpacked(made.path, tmp_path / "x") / "tvm-mobilenet-board.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert "--host 127.0.0.1" in start
    assert "OOMPolicy=continue" in unit


def test_the_agent_is_built_once_for_each_state_of_its_sources(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_agent(native_target())
    built = first.stat()
    assert build_agent(native_target()) == first
    assert first.stat().st_mtime_ns == built.st_mtime_ns
    for index in range(12):
        (tmp_path / f"tvm-mobilenet/agent/old{index}").mkdir()
        os.utime(tmp_path / f"tvm-mobilenet/agent/old{index}", (index, index))
    monkeypatch.setenv("TVM_MOBILENET_CC", "cc -O1")
    second = build_agent(native_target())
    assert second != first
    kept = {path.name for path in second.parent.parent.iterdir()}
    assert {first.parent.name, second.parent.name} <= kept
    assert len(kept) == 8


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path):
    with pytest.raises(UsageError, match="generic-armv7: TVM publishes no runtime for arm"):
        bundle_board(load_target("generic-armv7"), tmp_path / "board.tar.gz")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        bundle_board(native_target(), tmp_path / "file/board.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
