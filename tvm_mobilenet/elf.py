"""The few facts about a shared library that can be read from its ELF header, without loading it."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from tvm_mobilenet.errors import ArtifactError

__all__ = ["host_machine", "library_machine", "machine_name"]

# e_machine numbers from the System V gABI registry of machine names.
_MACHINES = {3: "i386", 40: "arm", 62: "x86-64", 183: "aarch64", 243: "riscv"}

# What the kernel calls a machine, where it is not the name used here.
_HOST_NAMES = {
    "x86_64": "x86-64",
    "AMD64": "x86-64",
    "arm64": "aarch64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "i386",
    "riscv64": "riscv",
}


def library_machine(path: Path) -> str:
    """Return the machine that the ELF file at `path` is for: `x86-64`, `aarch64`, `arm`, ...

    Raises:
        ArtifactError: the file cannot be read or is no ELF file.
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError as err:
        raise ArtifactError(f"library {path}: cannot be read: {err.strerror}") from err
    if len(header) < 20 or header[:4] != b"\x7fELF" or header[5] not in (1, 2):
        raise ArtifactError(
            f"library {path}: not an ELF shared library; compile the model again into this folder"
        )
    (number,) = struct.unpack_from("<H" if header[5] == 1 else ">H", header, 18)
    return _MACHINES.get(number, f"ELF machine {number}")


def host_machine() -> str:
    """Return the name that `library_machine` gives to libraries for this machine."""
    return machine_name(platform.machine())


def machine_name(kernel_name: str) -> str:
    """Return the name used here for what `uname -m` says of a machine."""
    return _HOST_NAMES.get(kernel_name, kernel_name)
