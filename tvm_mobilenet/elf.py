"""The few facts about a shared library that can be read from its ELF header, without loading it."""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from tvm_mobilenet.errors import ArtifactError

__all__ = ["host_machine", "library_machine", "machine_name", "required_versions"]

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


def required_versions(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the newest version of each interface that the file at `path` asks of the system.

    `{"GLIBC": (2, 28), "GLIBCXX": (3, 4, 22)}`: what a loader compares with what its libraries
    offer. Read from the section .gnu.version_r of a little-endian file.

    Raises:
        ArtifactError: the file cannot be read or is damaged.
    """
    library_machine(path)
    try:
        data = path.read_bytes()
        names = list(_version_names(data))
    except (OSError, struct.error, ValueError) as err:
        raise ArtifactError(f"library {path}: its ELF tables cannot be read: {err}") from err
    newest: dict[str, tuple[int, ...]] = {}
    for name in names:
        if match := re.fullmatch(r"([A-Z]+)_(\d+(?:\.\d+)*)", name):
            version = tuple(map(int, match[2].split(".")))
            newest[match[1]] = max(version, newest.get(match[1], version))
    return newest


_SHT_GNU_VERNEED = 0x6FFFFFFE


def _version_names(data: bytes) -> Iterator[str]:
    # Offsets of e_shoff, e_shentsize, and of a section's type, offset, link and info.
    if data[4] == 2:
        word, table, sizes, fields = "<Q", 40, 58, (4, 24, 40, 44)
    else:
        word, table, sizes, fields = "<I", 32, 46, (4, 16, 24, 28)
    (start,) = struct.unpack_from(word, data, table)
    entry_size, count = struct.unpack_from("<HH", data, sizes)

    def section(index: int) -> tuple[int, int, int, int]:
        at = start + index * entry_size
        kind, link, info = (struct.unpack_from("<I", data, at + fields[i])[0] for i in (0, 2, 3))
        return kind, struct.unpack_from(word, data, at + fields[1])[0], link, info

    for kind, offset, link, needed in map(section, range(count)):
        if kind != _SHT_GNU_VERNEED:
            continue
        strings = section(link)[1]
        for _ in range(needed):
            _, versions, _, first, following = struct.unpack_from("<HHIII", data, offset)
            at = offset + first
            for _ in range(versions):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, at)
                begin = strings + name
                yield data[begin : data.index(b"\0", begin)].decode("ascii", "replace")
                at += step
            offset += following


def host_machine() -> str:
    """Return the name that `library_machine` gives to libraries for this machine."""
    return machine_name(platform.machine())


def machine_name(kernel_name: str) -> str:
    """Return the name used here for what `uname -m` says of a machine."""
    return _HOST_NAMES.get(kernel_name, kernel_name)
