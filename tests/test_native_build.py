from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tvm_mobilenet import toolchain
from tvm_mobilenet.elf import host_machine, library_machine
from tvm_mobilenet.errors import ToolchainError
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.targets import load_target

PROGRAM = """
#include <stdio.h>
#include "greeting.h"
int main(void) { printf("%s %d\\n", GREETING, twice(NUMBER)); return 0; }
"""
LIBRARY = """
#include "greeting.h"
__attribute__((visibility("default"))) int twice(int number) { return 2 * number; }
"""


@pytest.fixture(autouse=True)
def no_named_compiler(monkeypatch):
    monkeypatch.delenv(toolchain.COMPILER_VARIABLE, raising=False)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "include").mkdir(parents=True)
    (folder / "include/greeting.h").write_text("int twice(int number);\n")
    (folder / "main.c").write_text(PROGRAM)
    (folder / "twice.c").write_text(LIBRARY)
    return folder


def build(sources: Path, out: Path, target_name: str) -> Path:
    target = load_target(target_name)
    include = [sources / "include"]
    library = out / "libtwice.so"
    build_native([sources / "twice.c"], library, target, kind="shared", include=include)
    build_native(
        [sources / "main.c"],
        out / "program",
        target,
        kind="program",
        include=include,
        libraries=[library, "-lm"],
        defines={"GREETING": '"twice is"', "NUMBER": "21"},
    )
    return out / "program"


def test_a_program_finds_the_library_beside_it(sources: Path, tmp_path: Path):
    program = build(sources, tmp_path / "out", "host")
    moved = (tmp_path / "out").rename(tmp_path / "moved") / program.name
    result = subprocess.run([moved], check=True, capture_output=True, text=True)
    assert result.stdout == "twice is 42\n"


@pytest.mark.parametrize(
    ("name", "machine"), [("host", host_machine()), ("rpi4", "aarch64"), ("generic-armv7", "arm")]
)
def test_the_same_sources_give_the_same_bytes_for_every_target(
    name: str, machine: str, sources: Path, tmp_path: Path
):
    for out in ("one", "another"):
        program = build(sources, tmp_path / out, name)
        assert library_machine(program) == machine
        assert os.access(program, os.X_OK)
    for file in ("program", "libtwice.so"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "another" / file).read_bytes()
        assert str(tmp_path).encode() not in (tmp_path / "one" / file).read_bytes()


def test_a_warning_is_an_error_and_leaves_nothing(tmp_path: Path):
    source = tmp_path / "bad.c"
    source.write_text("int main(void) { int unused; return 0; }\n")
    with pytest.raises(ToolchainError, match=r"for host failed: .*unused"):
        build_native([source], tmp_path / "out/bad", load_target("host"), kind="program")
    assert not list((tmp_path / "out").iterdir())
