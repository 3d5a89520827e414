"""TVM's runtime libraries for a target: this machine's own, or those from a board's wheels.

A board's libraries come out of the same release's wheels for its architecture, fetched by pip from
wherever the user's pip fetches, and compared with the hashes below before anything is unpacked.
They are kept in the user's cache folder.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.elf import host_machine
from tvm_mobilenet.errors import ToolchainError, UsageError
from tvm_mobilenet.files import output_error, sha256_of

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["RuntimeLibs", "cache_folder", "package_folder", "runtime_libs", "target_machine"]

logger = logging.getLogger(__name__)

_FETCH_TIMEOUT_S = 1800


@dataclass(frozen=True)
class _Wheel:
    package: str
    version: str
    sha256: str
    files: tuple[str, ...]
    """What is kept of it."""


_TVM_FILES = (
    "tvm/lib/libtvm_runtime.so",
    "tvm/lib/libtvm_runtime_extra.so",
    "tvm/LICENSE",
    "tvm/NOTICE",
)
_FFI_FILES = ("tvm_ffi/lib/libtvm_ffi.so",)

# By architecture. The library in the FFI wheels does not depend on Python; the one for 3.11 is
# fetched, whatever Python runs here, so that there is one hash.
_PYTHON = "3.11"
_WHEELS = {
    "aarch64": (
        _Wheel(
            "apache-tvm",
            "0.27.0.post1",
            "4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
            _TVM_FILES,
        ),
        _Wheel(
            "apache-tvm-ffi",
            "0.1.14.post1",
            "c7a759781d4fbf2b99fa12f2741f250b882b06acc2747bb02831d491d1ac7d3c",
            _FFI_FILES,
        ),
    ),
}
_PLATFORMS = {"aarch64": "manylinux_2_28_aarch64"}


@dataclass(frozen=True, kw_only=True)
class RuntimeLibs:
    """What a native program is built against and ships with, for one target."""

    version: str
    """TVM's release."""
    tvm_runtime: Path
    """`libtvm_runtime.so`."""
    tvm_ffi: Path
    """`libtvm_ffi.so`."""
    tvm_runtime_extra: Path
    """`libtvm_runtime_extra.so`: random numbers and sorting, which tuning over RPC asks for."""
    include: tuple[Path, ...]
    """Folders of the C headers, the same for every architecture."""
    notices: tuple[Path, ...]
    """Licence and notice that go with the libraries."""


def runtime_libs(target: TargetSpec) -> RuntimeLibs:
    """Return TVM's runtime libraries for `target`, fetching them the first time.

    For a target of this machine's architecture they are the installed ones. Two processes may ask
    at once: one fetches, the other waits.

    Raises:
        UsageError: TVM is not published for that architecture.
        ToolchainError: they cannot be fetched, or are not what they should be.
        OutputError: the cache folder cannot be written.
    """
    machine = target_machine(target)
    if machine == host_machine():
        root = package_folder("tvm").parent
        ffi_root = package_folder("tvm_ffi").parent
        version = importlib.metadata.version("apache-tvm")
    elif machine in _WHEELS:
        root = ffi_root = _fetched(machine)
        version = _WHEELS[machine][0].version
    else:
        raise UsageError(
            f"target {target.name}: TVM publishes no runtime for {machine}, only for "
            f"{', '.join(sorted({*_WHEELS, host_machine()}))}; build TVM's runtime on the board, "
            "or choose a 64-bit system for it"
        )
    return RuntimeLibs(
        version=version,
        tvm_runtime=root / "tvm/lib/libtvm_runtime.so",
        tvm_ffi=ffi_root / "tvm_ffi/lib/libtvm_ffi.so",
        tvm_runtime_extra=root / "tvm/lib/libtvm_runtime_extra.so",
        include=(package_folder("tvm_ffi") / "include",),
        notices=(root / "tvm/LICENSE", root / "tvm/NOTICE"),
    )


def target_machine(target: TargetSpec) -> str:
    """Return the machine that `target` is, in the words of `tvm_mobilenet.elf`."""
    name = target.link.triple.split("-")[0]
    return {"x86_64": "x86-64", "arm64": "aarch64"}.get(name, name)


def cache_folder() -> Path:
    """Return the folder for what can be fetched or made again; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tvm-mobilenet"


def package_folder(name: str) -> Path:
    """Return where an installed package lies, without importing it.

    Raises:
        ToolchainError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ToolchainError(f"{name} is not installed here; install tvm-mobilenet again")
    return Path(spec.origin).parent


def _fetched(machine: str) -> Path:
    """Return the folder that holds a board's libraries as its wheels lay them out."""
    wheels = _WHEELS[machine]
    name = "-".join([machine, *(wheel.version for wheel in wheels)])
    folder = cache_folder() / "runtime" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():  # another process has been here meanwhile
                return folder
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as scratch:
                contents = Path(scratch) / "contents"
                for wheel in wheels:
                    _unpack(_download(wheel, machine, Path(scratch)), wheel, contents)
                contents.rename(folder)
    except OSError as err:
        raise output_error(folder, err) from err
    return folder


def _download(wheel: _Wheel, machine: str, scratch: Path) -> Path:
    """Have pip fetch one wheel, and compare its hash."""
    logger.info("fetching %s %s for %s", wheel.package, wheel.version, machine)
    folder = scratch / wheel.package
    asked = f"{wheel.package} {wheel.version} for {machine}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(folder), "--only-binary=:all:", "--platform", _PLATFORMS[machine]]
    command += ["--python-version", _PYTHON, "--implementation", "cp"]
    command += ["--abi", f"cp{_PYTHON.replace('.', '')}", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", f"{wheel.package}=={wheel.version}"]
    if importlib.util.find_spec("pip") is None:
        raise ToolchainError(f"{asked}: there is no pip here to fetch it; install pip")
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as err:
        raise ToolchainError(
            f"{asked}: pip did not get it within {_FETCH_TIMEOUT_S} s; try again on a better line"
        ) from err
    found = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode != 0 or len(found) != 1:
        said = [line for line in result.stdout.strip().splitlines() if line.startswith("ERROR")]
        reason = " ".join((said or ["it said nothing"])[-1].split())
        raise ToolchainError(
            f"{asked}: pip cannot get it ({reason}); connect to a package index, or put the wheel "
            "into a folder that PIP_FIND_LINKS names"
        )
    digest = sha256_of(found[0])
    if digest != wheel.sha256:
        raise ToolchainError(
            f"{asked}: the file that pip got has sha256 {digest}, expected is {wheel.sha256}; "
            "nothing of it was used; check which package index pip asks"
        )
    return found[0]


def _unpack(path: Path, wheel: _Wheel, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in wheel.files:
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, place.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    finally:
        path.unlink()  # the compiler in it is most of the space
