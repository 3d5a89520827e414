"""The machine at hand, described as a target."""

from __future__ import annotations

import functools
import logging
import math
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.targets import FORMAT_VERSION, HOST, Cpu, Link, TargetSpec, TvmOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["cpu_quota", "detect_host"]

logger = logging.getLogger(__name__)

# Feature names of LLVM beside the flags of Linux's /proc/cpuinfo: those that a virtual machine may
# mask although the processor has them. A name that LLVM derives from the model alone would let
# instructions in that trap.
_X86_FLAGS = {
    "avx": "avx",
    "avx2": "avx2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512fp16": "avx512_fp16",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "gfni": "gfni",
    "lzcnt": "abm",
    "movbe": "movbe",
    "popcnt": "popcnt",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
}
_AVX512_BASE = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_AVX2_BASE = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}

# Arm's part numbers (Main ID Register, section "MIDR_EL1" of each core's reference manual): LLVM's
# name and the 128-bit multiply-adds per cycle (each core's software optimization guide).
_ARM_PARTS = {
    "0xd03": ("cortex-a53", 1),
    "0xd05": ("cortex-a55", 1),
    "0xd07": ("cortex-a57", 1),
    "0xd08": ("cortex-a72", 1),
    "0xd09": ("cortex-a73", 1),
    "0xd0a": ("cortex-a75", 2),
    "0xd0b": ("cortex-a76", 2),
    "0xd0c": ("neoverse-n1", 2),
    "0xd0d": ("cortex-a77", 2),
    "0xd40": ("neoverse-v1", 4),
    "0xd41": ("cortex-a78", 2),
    "0xd42": ("cortex-a78ae", 2),
    "0xd49": ("neoverse-n2", 2),
    "0xd4f": ("neoverse-v2", 4),
}

# What nearly every processor in use has at least, for machines that hide their caches.
_CAREFUL_CACHES = {"l1d_kib": 32, "l1d_ways": 4, "l2_kib": 256, "l3_kib": 0}

_HOST_GLIBC = "2.17"  # oldest that Zig links for; the system's own linker ignores it


@functools.lru_cache(maxsize=1)
def detect_host() -> TargetSpec:
    """Describe this machine: processor, features, physical cores at our disposal, caches.

    What cannot be found out is assumed on the careful side, and logged with the reason.
    """
    return _describe_host(platform.machine(), Path("/"), _llvm_cpu(), _usable_cpus())


def _describe_host(machine: str, root: Path, llvm_cpu: str, cpus: Sequence[int]) -> TargetSpec:
    blocks = _cpuinfo(root)
    system = root / "sys/devices/system/cpu"
    if machine in ("x86_64", "AMD64"):
        tvm_options, isa, isa_source, triple = _x86_host(blocks, llvm_cpu)
    elif machine in ("aarch64", "arm64"):
        cpus = _big_cluster(system, cpus)
        tvm_options, isa, isa_source, triple = _aarch64_host(blocks, llvm_cpu, cpus[0])
    else:
        logger.warning("no schedules are known for %s; taking it for a plain machine", machine)
        tvm_options = TvmOptions(mtriple=f"{machine}-linux-gnu", mcpu=llvm_cpu or "generic")
        isa, isa_source = _isa("generic", 128, 16, "none", 1), f"assumed for {machine}"
        triple = f"{machine}-linux-gnu"
    caches, cache_source = _caches(system, cpus[0])
    cores = min(len(_cores(system, cpus)), cpu_quota(root) or len(cpus))
    freq_mhz, freq_source = _frequency(system, cpus[0], blocks)
    sources = dict.fromkeys(("vector_bits", "vector_registers", "fma_units"), isa_source)
    sources |= dict.fromkeys(_CAREFUL_CACHES, cache_source)
    sources |= {"cores": "topology in /sys, affinity and CPU quota", "freq_mhz": freq_source}
    return TargetSpec(
        format_version=FORMAT_VERSION,
        name=HOST,
        description=_cpu_name(blocks, tvm_options.mcpu),
        tvm=tvm_options,
        link=Link(triple=triple, glibc=_HOST_GLIBC),
        cpu=Cpu.model_validate({**isa, **caches, "cores": cores, "freq_mhz": freq_mhz}),
        sources=sources,
    )


def _isa(isa: str, bits: int, registers: int, fma: str, units: int, **has: bool) -> dict[str, Any]:
    return {
        "isa": isa,
        "vector_bits": bits,
        "vector_registers": registers,
        "fma": fma,
        "fma_units": units,
        **has,
    }


def _x86_host(
    blocks: Sequence[Mapping[str, str]], llvm_cpu: str
) -> tuple[TvmOptions, dict[str, Any], str, str]:
    block = blocks[0] if blocks else {}
    flags = set(block.get("flags", "").split())
    vnni = bool({"avx512_vnni", "avx_vnni"} & flags)
    source = "flags in /proc/cpuinfo"
    if flags >= _AVX512_BASE | _AVX2_BASE:
        # Zen 4 (family 25) runs a 512-bit multiply-add through two 256-bit halves: AMD, Software
        # Optimization Guide for the AMD Zen4 Microarchitecture (57647), floating-point unit.
        halved = block.get("vendor_id") == "AuthenticAMD" and block.get("cpu family") == "25"
        isa = _isa(
            "avx512",
            512,
            32,
            "broadcast",
            1 if halved else 2,
            has_dot_product=vnni,
            has_bf16="avx512_bf16" in flags,
        )
        level = "x86-64-v4"
    elif flags >= _AVX2_BASE:
        isa = _isa("avx2", 256, 16, "broadcast", 2, has_dot_product=vnni)
        level = "x86-64-v3"
    else:
        logger.warning("this processor has no AVX2 with FMA; schedules are for plain SSE")
        isa = _isa("generic", 128, 16, "none", 1)
        level = "x86-64-v2" if {"ssse3", "sse4_2", "popcnt"} <= flags else "x86-64"
    mcpu, mattr = _safe_x86_cpu(llvm_cpu, level, flags)
    triple = "x86_64-linux-gnu"
    return TvmOptions(mtriple=triple, mcpu=mcpu, mattr=mattr), isa, source, triple


def _safe_x86_cpu(llvm_cpu: str, level: str, flags: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return LLVM's own name where every feature it implies is there, else a level of the ABI."""
    implied = _llvm_features(llvm_cpu) if llvm_cpu else set()
    masked = sorted(name for name in implied & set(_X86_FLAGS) if _X86_FLAGS[name] not in flags)
    if llvm_cpu and implied and not masked:
        return llvm_cpu, ()
    reason = f"masked here: {', '.join(masked)}" if masked else "LLVM does not know it"
    logger.info("compiling for %s, not for %r (%s)", level, llvm_cpu, reason)
    known = _llvm_features(level)
    extra = (name for name, flag in _X86_FLAGS.items() if flag in flags and name not in known)
    return level, tuple(f"+{name}" for name in extra)


def _aarch64_host(
    blocks: Sequence[Mapping[str, str]], llvm_cpu: str, cpu: int
) -> tuple[TvmOptions, dict[str, Any], str, str]:
    block = next((b for b in blocks if b.get("processor") == str(cpu)), blocks[0] if blocks else {})
    flags = set(block.get("Features", "").split())
    mcpu, units = _ARM_PARTS.get(block.get("CPU part", ""), (llvm_cpu or "generic", 1))
    if mcpu == "generic":
        logger.warning("this processor is not known; compiling for plain AArch64")
    isa = _isa(
        "neon",
        128,
        32,
        "by-lane",
        units,
        has_dot_product="asimddp" in flags,
        has_fp16="asimdhp" in flags,
        has_i8mm="i8mm" in flags,
    )
    triple = "aarch64-linux-gnu"
    return TvmOptions(mtriple=triple, mcpu=mcpu), isa, "part and features in /proc/cpuinfo", triple


def _llvm_cpu() -> str:
    """Return LLVM's name of this processor, or an empty string where it has none."""
    from tvm.target import codegen

    name = str(codegen.llvm_get_system_cpu())
    return "" if name == "generic" else name


def _llvm_features(mcpu: str) -> set[str]:
    from tvm.target import Target, codegen

    target = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": mcpu})
    return {str(feature) for feature in codegen.llvm_get_cpu_features(target)}


def _usable_cpus() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """Return /proc/cpuinfo as one dictionary a processor."""
    text = _read(root / "proc/cpuinfo") or ""
    blocks = []
    for chunk in re.split(r"\n\s*\n", text.strip()):
        pairs = (line.split(":", 1) for line in chunk.splitlines() if ":" in line)
        blocks.append({key.strip(): value.strip() for key, value in pairs})
    return blocks


def _cpu_name(blocks: Sequence[Mapping[str, str]], mcpu: str) -> str:
    name = blocks[0].get("model name") if blocks else None
    return f"{name} ({mcpu})" if name else mcpu


def _big_cluster(system: Path, cpus: Sequence[int]) -> tuple[int, ...]:
    """Return the fastest of `cpus`: those that share the highest capacity (or clock)."""

    def speed(cpu: int) -> int:
        folder = system / f"cpu{cpu}"
        text = _read(folder / "cpu_capacity") or _read(folder / "cpufreq/cpuinfo_max_freq")
        return int(text) if text else 0

    speeds = {cpu: speed(cpu) for cpu in cpus}
    return tuple(cpu for cpu in cpus if speeds[cpu] == max(speeds.values()))


def _cores(system: Path, cpus: Sequence[int]) -> set[str]:
    """Return one entry for each physical core among `cpus`: its list of hardware threads."""
    return {_read(system / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Return the CPUs that the control group grants, rounded up; None where it sets no limit."""
    words = (_read(root / "sys/fs/cgroup/cpu.max") or "max").split()
    if words[0] == "max":
        return None
    return max(1, math.ceil(int(words[0]) / int(words[1])))


def _caches(system: Path, cpu: int) -> tuple[dict[str, int], str]:
    sizes = dict.fromkeys(_CAREFUL_CACHES, 0)
    keys = {"1": "l1d_kib", "2": "l2_kib", "3": "l3_kib"}
    for folder in sorted((system / f"cpu{cpu}/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM])", _read(folder / "size") or "")
        key = keys.get(_read(folder / "level") or "")
        if size is None or key is None or _read(folder / "type") == "Instruction":
            continue
        sizes[key] = int(size.group(1)) * (1024 if size.group(2) == "M" else 1)
        if key == "l1d_kib":
            ways = int(_read(folder / "ways_of_associativity") or 0)
            sizes["l1d_ways"] = ways or _CAREFUL_CACHES["l1d_ways"]
        if key == "l2_kib":
            sharers = _cpu_list(_read(folder / "shared_cpu_list") or "")
            sizes[key] //= max(1, len(_cores(system, sharers)))
    if sizes["l1d_kib"]:
        return sizes, "caches in /sys/devices/system/cpu"
    logger.info("this machine hides its caches; assuming %s", _CAREFUL_CACHES)
    return dict(_CAREFUL_CACHES), "assumed: the machine hides its caches"


def _cpu_list(text: str) -> list[int]:
    """Read the kernel's notation for CPU sets, `0-3,8`."""
    cpus: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def _frequency(system: Path, cpu: int, blocks: Sequence[Mapping[str, str]]) -> tuple[int, str]:
    khz = _read(system / f"cpu{cpu}/cpufreq/cpuinfo_max_freq")
    if khz:
        return int(khz) // 1000, "cpuinfo_max_freq in /sys"
    mhz = blocks[0].get("cpu MHz") if blocks else None
    if mhz:
        return round(float(mhz)), "cpu MHz in /proc/cpuinfo"
    return 1000, "assumed: the machine does not say"


def _read(path: Path) -> str | None:
    """Return the text of a small system file, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
