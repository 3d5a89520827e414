"""The folder that the emulator shows a program as `/`: AArch64 libraries, and an AArch64 processor.

    ROOT/lib             -> the distribution's AArch64 libraries
    ROOT/proc/cpuinfo    what a board with that processor would say

Whatever is not in it, the program finds where this machine has it. Without the `cpuinfo` it would
read this machine's, and libraries that take their processor's name from there crash at start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.errors import DeviceError, SpecError, suggestion
from tvm_mobilenet.files import output_error
from tvm_mobilenet.runtime_libs import cache_folder
from tvm_mobilenet.targets import TargetSpec

__all__ = ["EMULATOR", "PACKAGES", "board_root", "emulator_command", "missing_packages"]

EMULATOR = "qemu-aarch64"
"""The dynamic one: the static one takes no plugins."""

_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")

PACKAGES = {
    "qemu-user": None,
    "libc6-arm64-cross": _LIBRARIES / "ld-linux-aarch64.so.1",
    "libstdc++6-arm64-cross": _LIBRARIES / "libstdc++.so.6",
}
"""What an emulated board needs beyond PyPI, in the names of Debian and Ubuntu, each with a file of
it; the emulator's is looked for on the path."""

_V8_0 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V8_2 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp"
)
_ARM, _FUJITSU, _UNKNOWN = 0x41, 0x46, 0x00


@dataclass(frozen=True)
class _Processor:
    """Main ID register and features, as the kernel prints them."""

    implementer: int
    variant: int
    part: int
    revision: int
    features: str


# Reference: what MIDR_EL1 and the hardware capabilities read as in a program run by QEMU 7.2 with
# that `-cpu`; part numbers are those of Linux, arch/arm64/include/asm/cputype.h.
_PROCESSORS = {
    "cortex-a35": _Processor(_ARM, 1, 0xD04, 0, _V8_0),
    "cortex-a53": _Processor(_ARM, 0, 0xD03, 4, _V8_0),
    "cortex-a55": _Processor(_ARM, 2, 0xD05, 0, _V8_2),
    "cortex-a57": _Processor(_ARM, 1, 0xD07, 0, _V8_0),
    "cortex-a72": _Processor(_ARM, 0, 0xD08, 3, _V8_0),
    "cortex-a76": _Processor(_ARM, 4, 0xD0B, 1, _V8_2),
    "neoverse-n1": _Processor(_ARM, 4, 0xD0C, 1, _V8_2),
    "a64fx": _Processor(
        _FUJITSU,
        1,
        0x001,
        0,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm fcma "
        "dcpop sve",
    ),
    "max": _Processor(
        _UNKNOWN,
        0,
        0x051,
        0,
        f"{_V8_2} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm ilrcpc flagm sb paca pacg dcpodp "
        "sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
        "svebf16 i8mm bf16 rng bti mte",
    ),
}


def missing_packages() -> tuple[str, ...]:
    """Return which packages an emulated board still needs on this machine; empty where none."""
    return tuple(
        name
        for name, file in PACKAGES.items()
        if (shutil.which(EMULATOR) is None if file is None else not file.exists())
    )


def emulator_command(target: TargetSpec) -> list[str]:
    """Return the words that run an AArch64 program as on `target`'s board: put it behind them.

    Raises:
        SpecError: the target names no processor to emulate, or one that is not known.
        DeviceError: the emulator or its libraries are not installed.
        OutputError: the cache folder cannot be written.
    """
    cpu = _emulated_cpu(target)
    missing = missing_packages()
    if missing:
        raise DeviceError(
            f"emulated board {target.name}: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed here; on Debian or Ubuntu: "
            f"apt-get install {' '.join(PACKAGES)}"
        )
    return [EMULATOR, "-cpu", cpu, "-L", str(board_root(cpu))]


def _emulated_cpu(target: TargetSpec) -> str:
    if target.link.triple.split("-")[0] != "aarch64":
        raise SpecError(
            f"emulated board {target.name}: it is for {target.link.triple.split('-')[0]}; only "
            "aarch64 boards are emulated"
        )
    if target.emulation is None:
        raise SpecError(
            f"emulated board {target.name}: its target file names no processor to emulate; add "
            "[emulation] with a qemu_cpu to it"
        )
    cpu = target.emulation.qemu_cpu
    if cpu not in _PROCESSORS:
        raise SpecError(
            f"emulated board {target.name}: emulation.qemu_cpu is {cpu!r}, which is not "
            f"known{suggestion(cpu, _PROCESSORS)}; known: {', '.join(_PROCESSORS)}"
        )
    return cpu


def board_root(cpu: str) -> Path:
    """Return the root folder of a board with that processor, made the first time.

    Two processes may ask at once; both get the same whole folder.

    Raises:
        OutputError: the cache folder cannot be written.
    """
    count = os.cpu_count() or 1
    folder = cache_folder() / "sysroot" / f"{cpu}-{count}"
    text = _cpuinfo(_PROCESSORS[cpu], count)
    if _is_whole(folder, text):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            made = Path(scratch) / "root"
            (made / "proc").mkdir(parents=True)
            (made / "proc/cpuinfo").write_text(text, encoding="ascii")
            (made / "lib").symlink_to(_LIBRARIES)
            try:
                made.rename(folder)
            except OSError:
                # Somebody was faster, or what is there is of an older version of this file.
                if not _is_whole(folder, text):
                    folder.rename(Path(scratch) / "old")
                    made.rename(folder)
    except OSError as err:
        raise output_error(folder, err) from err
    return folder


def _is_whole(folder: Path, cpuinfo: str) -> bool:
    try:
        return (folder / "proc/cpuinfo").read_text(encoding="ascii") == cpuinfo and (
            folder / "lib"
        ).readlink() == _LIBRARIES
    except (OSError, UnicodeDecodeError):
        return False


def _cpuinfo(processor: _Processor, count: int) -> str:
    """Write what an AArch64 kernel would, one block a processor."""
    lines = []
    for index in range(count):
        lines += [
            f"processor\t: {index}",
            "BogoMIPS\t: 108.00",
            f"Features\t: {processor.features}",
            f"CPU implementer\t: 0x{processor.implementer:02x}",
            "CPU architecture: 8",
            f"CPU variant\t: 0x{processor.variant:x}",
            f"CPU part\t: 0x{processor.part:03x}",
            f"CPU revision\t: {processor.revision}",
            "",
        ]
    return "\n".join(lines) + "\n"
