from __future__ import annotations

import re
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tvm_mobilenet import runtime_libs as module
from tvm_mobilenet.elf import host_machine, library_machine
from tvm_mobilenet.errors import OutputError, ToolchainError, UsageError
from tvm_mobilenet.files import sha256_of
from tvm_mobilenet.runtime_libs import runtime_libs, target_machine
from tvm_mobilenet.targets import load_target

ROOT = Path(__file__).parents[1]
BOARD = "rpi4" if host_machine() != "aarch64" else "x86-64-avx2"
MACHINE = target_machine(load_target(BOARD))


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """A folder with small wheels in place of the real ones, where pip is made to look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheels = []
    for wheel in module._WHEELS["aarch64"]:
        name = wheel.package.replace("-", "_")
        info = f"{name}-{wheel.version}.dist-info"
        path = folder / f"{name}-{wheel.version}-py3-none-manylinux_2_28_{MACHINE}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in (*wheel.files, "tvm/not_wanted"):
                archive.writestr(file, f"content of {file}")
            metadata = f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        wheels.append(replace(wheel, sha256=sha256_of(path)))
    monkeypatch.setattr(module, "_WHEELS", {MACHINE: tuple(wheels)})
    monkeypatch.setattr(module, "_PLATFORMS", {MACHINE: f"manylinux_2_28_{MACHINE}"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def kept(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache/tvm-mobilenet/runtime"
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix == ".so")


def test_the_versions_are_those_that_the_project_pins():
    pins = dict(
        re.findall(r'"(apache-tvm(?:-ffi)?)==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    )
    assert len(pins) == 2
    for wheels in module._WHEELS.values():
        assert {wheel.package: wheel.version for wheel in wheels} == pins


def test_this_machine_uses_what_is_installed():
    libs = runtime_libs(load_target("host"))
    for path in (libs.tvm_runtime, libs.tvm_ffi, libs.tvm_runtime_extra):
        assert library_machine(path) == host_machine()
    assert any((folder / "tvm/ffi/c_api.h").is_file() for folder in libs.include)
    assert all(path.is_file() for path in libs.notices)


def test_a_board_gets_what_its_wheels_hold_and_only_that(index: Path, tmp_path: Path):
    libs = runtime_libs(load_target(BOARD))
    assert libs.tvm_runtime.read_text() == "content of tvm/lib/libtvm_runtime.so"
    assert libs.tvm_ffi.read_text() == "content of tvm_ffi/lib/libtvm_ffi.so"
    assert len(kept(tmp_path)) == 3
    for path in index.iterdir():
        path.unlink()
    assert runtime_libs(load_target(BOARD)) == libs, "the second time nothing is fetched"


def test_a_wheel_with_another_hash_is_not_unpacked(index: Path, tmp_path: Path):
    path = next(index.glob("apache_tvm_ffi*"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tvm_ffi/lib/more.so", "x")
    with pytest.raises(ToolchainError, match=r"apache-tvm-ffi .* has sha256 \w+, expected is"):
        runtime_libs(load_target(BOARD))
    assert not kept(tmp_path)


def test_without_the_wheels_one_line_says_what_to_do(index: Path, tmp_path: Path):
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(
        ToolchainError, match=r"apache-tvm .* pip cannot get it .*PIP_FIND_LINKS"
    ) as e:
        runtime_libs(load_target(BOARD))
    assert "\n" not in str(e.value)
    assert not kept(tmp_path)


def test_of_two_that_ask_at_once_one_fetches(index: Path, monkeypatch):
    fetched = []
    download = module._download

    def counted(wheel, machine, scratch):
        fetched.append(wheel.package)
        return download(wheel, machine, scratch)

    monkeypatch.setattr(module, "_download", counted)
    found = []
    askers = [
        threading.Thread(target=lambda: found.append(runtime_libs(load_target(BOARD))))
        for _ in range(3)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(120)
    assert len(found) == 3
    assert sorted(fetched) == ["apache-tvm", "apache-tvm-ffi"]


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cannot write .*runtime"):
        runtime_libs(load_target(BOARD))


def test_a_32_bit_board_is_told_that_there_is_nothing_for_it():
    with pytest.raises(UsageError, match="generic-armv7: TVM publishes no runtime for arm"):
        runtime_libs(load_target("generic-armv7"))
