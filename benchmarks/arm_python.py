"""An AArch64 Python for the emulator, with the wheels of other engines in it.

Debian's packages are unpacked into the cache folder, with nothing installed on this machine and no
right of root needed: apt keeps its lists in a folder of ours and is told that it serves arm64. The
engines come from the package index by pip, for the platform that they will run on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.absence import EngineUnavailableError
from tvm_mobilenet.boards.sysroot import board_root
from tvm_mobilenet.runtime_libs import cache_folder

__all__ = ["ArmPython", "arm_python", "host_wheel"]

_LIBRARIES = ("libc6", "libstdc++6", "libgcc-s1", "libgomp1", "zlib1g", "libexpat1", "libffi8")
_PLATFORMS = ("manylinux_2_17", "manylinux2014", "manylinux_2_27", "manylinux_2_28")
_STEP_S = 600


@dataclass(frozen=True)
class ArmPython:
    """A folder tree with `usr/bin/python3.X` for AArch64."""

    root: Path
    version: str
    """`3.X`."""

    def command(self, cpu: str, plugin: Sequence[str]) -> list[str]:
        """Return the words that start it on an emulated processor."""
        program = self.root / f"usr/bin/python{self.version}"
        return ["qemu-aarch64", "-cpu", cpu, *plugin, "-L", str(self._root_of(cpu)), str(program)]

    def _root_of(self, cpu: str) -> Path:
        """Return a root with the processor's description in it: some engines read that."""
        folder = self.root.parent / f"{self.root.name}-{cpu}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / "root"
                (made / "proc").mkdir(parents=True)
                shutil.copy(board_root(cpu) / "proc/cpuinfo", made / "proc/cpuinfo")
                for name in ("usr", "lib"):
                    (made / name).symlink_to(self.root / name)
                _move(made, folder)
        return folder

    def site(self, requirements: Sequence[str]) -> Path:
        """Return a folder for PYTHONPATH with those wheels, fetched the first time."""
        tags = [f"{name}_aarch64" for name in _PLATFORMS]
        options = [word for tag in tags for word in ("--platform", tag)]
        folder = self.root.parent / f"site-{self.version}" / "+".join(requirements)
        return _wheels(folder, requirements, [*options, "--python-version", self.version])


def host_wheel(requirement: str) -> Path:
    """Return a folder for PYTHONPATH with a wheel for this machine, installed nowhere."""
    return _wheels(cache_folder() / "peers" / "host" / requirement, [requirement], [])


def _wheels(folder: Path, requirements: Sequence[str], options: Sequence[str]) -> Path:
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made, fetched = Path(scratch) / "site", Path(scratch) / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(fetched)]
        _run([*command, *options, *requirements], f"fetching {', '.join(requirements)}")
        for wheel in sorted(fetched.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(made)
        _move(made, folder)
    return folder


def arm_python() -> ArmPython:
    """Return the AArch64 Python, put together the first time.

    Raises:
        EngineUnavailableError: this is no Debian-like system, or a package cannot be fetched.
    """
    parent = cache_folder() / "peers"
    found = sorted(parent.glob("python3.*[0-9]"))
    for folder in found:
        version = folder.name.removeprefix("python")
        if (folder / f"usr/bin/python{version}").is_file():
            return ArmPython(folder, version)
    missing = [name for name in ("apt-get", "dpkg-deb", "qemu-aarch64") if not shutil.which(name)]
    if missing:
        raise EngineUnavailableError(
            f"an AArch64 Python needs {', '.join(missing)}, which this machine lacks; on Debian or "
            "Ubuntu: apt-get install dpkg apt qemu-user"
        )
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        return _assemble(Path(scratch), parent)


def _assemble(scratch: Path, parent: Path) -> ArmPython:
    for name in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (scratch / name).mkdir(parents=True)
    options = [
        "-o",
        f"Dir::State::lists={scratch / 'lists'}",
        "-o",
        f"Dir::Cache={scratch / 'cache'}",
    ]
    for name in ("APT::Architecture", "APT::Architectures"):
        options += ["-o", f"{name}=arm64"]
    _run(["apt-get", "-q", *options, "update"], "reading Debian's list of arm64 packages")
    text = _run(["apt-cache", *options, "depends", "python3-minimal"], "looking for Python")
    names = [
        line.split()[-1] for line in text.splitlines() if "-minimal" in line and "ends:" in line
    ]
    if not names:
        raise EngineUnavailableError(
            "an AArch64 Python: apt names no python3.X-minimal for arm64; add a source that does"
        )
    version = names[0].removeprefix("python").removesuffix("-minimal")
    packages = [f"python{version}-minimal", f"libpython{version}-minimal"]
    packages += [f"libpython{version}-stdlib", *_LIBRARIES]
    _run(
        ["apt-get", "-q", *options, "download", *packages],
        f"fetching {', '.join(packages)} for arm64",
        cwd=scratch / "packages",
    )
    for package in sorted((scratch / "packages").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(scratch / "root")], f"unpacking {package.name}")
    folder = parent / f"python{version}"
    _move(scratch / "root", folder)
    return ArmPython(folder, version)


def _move(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless somebody else was faster."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _run(command: Sequence[str], what: str, *, cwd: Path | None = None) -> str:
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_STEP_S,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.returncode:
        said = [line for line in result.stderr.strip().splitlines() if "WARNING" not in line]
        raise EngineUnavailableError(f"{what} failed: {(said or ['it said nothing'])[-1]}")
    return result.stdout
