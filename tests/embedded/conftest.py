"""Bundles, unpacked, for this machine and for the emulated board, and what is built of them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.bundle import bundle_artifact
from tvm_mobilenet.bundle_trial import emulator
from tvm_mobilenet.targets import load_target

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARM = "rpi4"
TIMEOUT_S = 300


@dataclass(frozen=True)
class Place:
    """A bundle of the colour network, where it can be run."""

    target: str
    root: Path
    """The unpacked bundle."""
    runner: list[str]
    """What runs its programs here: nothing, or the emulator."""
    scratch: Path
    built: dict[str, Path] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def artifact(self) -> Artifact:
        return open_artifact(self.model, runnable=False)

    def run(self, program: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess:
        """Run one of its programs and check how it ends."""
        result = subprocess.run(
            [*self.runner, str(program), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert result.returncode == code, result.stderr
        return result

    def classify(self, *words: object, code: int = 0) -> subprocess.CompletedProcess:
        """Run the prebuilt program."""
        return self.run(self.root / "bin/classify", *words, code=code)

    def build(self, source: Path, name: str, *options: str) -> Path:
        """Build `source` with CMake, once; return the folder of the result."""
        if name not in self.built:
            if shutil.which("cmake") is None:
                pytest.skip("cmake is not installed")
            folder = self.scratch / name
            command = ["cmake", "-S", str(source), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
            for step in (
                [*command, *self._toolchain(), *options],
                ["cmake", "--build", str(folder), "--parallel", "2"],
            ):
                made = subprocess.run(step, capture_output=True, text=True, timeout=TIMEOUT_S)
                assert made.returncode == 0, made.stdout + made.stderr
            self.built[name] = folder
        return self.built[name]

    def checks(self) -> Path:
        """Build the checks; return the program."""
        return self.build(HERE, "checks", *self.checks_options()) / "checks"

    def checks_options(self) -> list[str]:
        document = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```c\n(.*?)```", document, re.DOTALL)
        program = self.scratch / "embedding.c"
        program.write_text("\n".join(blocks))
        return [f"-DBUNDLE={self.root}", f"-DEMBEDDING={program}"]

    def _toolchain(self) -> list[str]:
        if not self.runner:
            return []
        # Zig, as a cross compiler that needs no package: a file of one line, as users write one.
        link = load_target(self.target).link
        compiler = self.scratch / "cc"
        words = [sys.executable, "-m", "ziglang", "cc", "-target", f"{link.triple}.{link.glibc}"]
        compiler.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        compiler.chmod(0o755)
        file = self.scratch / "board.cmake"
        file.write_text(
            "set(CMAKE_SYSTEM_NAME Linux)\n"
            "set(CMAKE_SYSTEM_PROCESSOR aarch64)\n"
            f"set(CMAKE_C_COMPILER {compiler})\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)\n"
            "set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)\n"
            "set(CMAKE_FIND_ROOT_PATH /nowhere)\n"
        )
        return [f"-DCMAKE_TOOLCHAIN_FILE={file}"]


def unpack(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def make_place(artifact: Path, folder: Path) -> Place:
    made = bundle_artifact(artifact, out=folder / "bundle.tar.gz")
    target = load_target(made.target)
    runner = emulator(target, made.machine)
    assert runner is not None
    scratch = folder / "scratch"
    scratch.mkdir()
    return Place(made.target, unpack(folder / "bundle.tar.gz", folder / "board"), runner, scratch)


@pytest.fixture(scope="session")
def host_place(colour_dir: Path, tmp_path_factory) -> Place:
    return make_place(colour_dir, tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def arm_place(colour_onnx: Path, tmp_path_factory) -> Place:
    from tvm_mobilenet.workflow import compile_model

    if emulator(load_target(ARM), "aarch64") is None:
        pytest.skip("qemu-aarch64 or /usr/aarch64-linux-gnu (libc6-arm64-cross) is not installed")
    folder = tmp_path_factory.mktemp("arm")
    compile_model(colour_onnx, target=ARM, out=folder / "artifact")
    return make_place(folder / "artifact", folder)


@pytest.fixture(params=["host", pytest.param("arm", marks=pytest.mark.arm)])
def place(request: pytest.FixtureRequest) -> Place:
    """Both, one after the other."""
    made = request.getfixturevalue(f"{request.param}_place")
    assert isinstance(made, Place)
    return made


@pytest.fixture
def copy_of_model(place: Place, tmp_path: Path) -> Path:
    """The model's folder, to be damaged."""
    return Path(shutil.copytree(place.model, tmp_path / "model"))
