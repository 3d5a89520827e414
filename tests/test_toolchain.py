from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tvm_mobilenet import toolchain
from tvm_mobilenet.elf import host_machine, library_machine
from tvm_mobilenet.errors import OutputError, ToolchainError
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.toolchain import link, make_fcompile


def kernel(target: TargetSpec):
    import tvm
    from tvm import te

    x = te.placeholder((64,), name="x", dtype="float32")
    y = te.compute((64,), lambda i: te.exp(x[i]) + x[i], name="y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", "exp_plus")
    return tvm.compile(tvm.IRModule({"exp_plus": function}), target=target.tvm_target()).mod


def objects(target: TargetSpec, folder: Path, *names: str) -> list[Path]:
    folder.mkdir()
    paths = [folder / name for name in names]
    for path in paths:
        kernel(target).write_to_file(str(path))
    return paths


@pytest.fixture(autouse=True)
def no_named_compiler(monkeypatch):
    monkeypatch.delenv(toolchain.COMPILER_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("host", host_machine()),
        ("x86-64-avx2", "x86-64"),
        ("rpi4", "aarch64"),
        ("generic-armv7", "arm"),
    ],
)
def test_the_same_objects_give_the_same_bytes_whatever_they_are_called(
    name: str, machine: str, tmp_path: Path
):
    target = load_target(name)
    for folder, file in (("one", "lib0.o"), ("another", "quite_else.o")):
        link(objects(target, tmp_path / folder, file), tmp_path / f"{folder}.so", target)
    assert library_machine(tmp_path / "one.so") == machine
    assert (tmp_path / "one.so").read_bytes() == (tmp_path / "another.so").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "one.so", "another", "another.so"}


def test_a_library_for_this_machine_runs(tmp_path: Path):
    import numpy as np
    import tvm

    target = load_target("host")
    path = tmp_path / "kernel.so"
    kernel(target).export_library(str(path), fcompile=make_fcompile(target))
    x = np.linspace(-1, 1, 64, dtype="float32")
    y = tvm.runtime.tensor(np.zeros(64, "float32"))
    tvm.runtime.load_module(str(path))["exp_plus"](tvm.runtime.tensor(x), y)
    np.testing.assert_allclose(y.numpy(), np.exp(x) + x, rtol=1e-6)


def test_zig_links_for_this_machine_where_there_is_no_compiler(tmp_path: Path, monkeypatch):
    target = load_target("host")
    made = objects(target, tmp_path / "o", "k.o")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    link(made, tmp_path / "k.so", target)
    assert library_machine(tmp_path / "k.so") == host_machine()


def test_missing_linker_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ToolchainError, match="no linker; install a C compiler, or Zig"):
        link([], tmp_path / "k.so", load_target("host"))


def test_the_option_beats_the_environment_and_both_are_obeyed(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(toolchain.COMPILER_VARIABLE, "no-such-cc-in-environment")
    with pytest.raises(ToolchainError, match="no-such-cc-in-environment"):
        link([], tmp_path / "k.so", load_target("rpi4"))
    with pytest.raises(ToolchainError, match="'no-such-cc' was not found"):
        link([], tmp_path / "k.so", load_target("rpi4"), compiler="no-such-cc --flag")


def test_a_failing_linker_is_quoted_and_leaves_nothing(tmp_path: Path):
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"this is no object file")
    with pytest.raises(ToolchainError, match=r"linking for rpi4 failed: .*broken\.o"):
        link([broken], tmp_path / "k.so", load_target("rpi4"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.o"]


def test_a_full_disk_is_an_output_error(tmp_path: Path):
    cc = tmp_path / "cc"
    cc.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device' >&2\nexit 1\n")
    cc.chmod(stat.S_IRWXU)
    with pytest.raises(OutputError, match="the disk is full"):
        link([], tmp_path / "k.so", load_target("host"), compiler=str(cc))


def test_an_output_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*k\.so"):
        link([], tmp_path / "file" / "k.so", load_target("host"))
