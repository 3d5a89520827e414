"""What is known of a machine that measures: this one, or a board that describes itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BoardFacts", "CpuFacts", "HostFacts", "host_facts", "throttling"]

_HOT_C = 80.0
"""A Raspberry Pi lowers its clock from here on (raspberrypi.com, documentation of `temp_limit`);
RK3588's first trip point is at 85 (rk3588.dtsi)."""
_SLOWER_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The machine that measured."""

    cpu: str
    machine: str
    """`x86_64`, `aarch64`, ..."""
    cpus: int
    """Processors that the process may run on."""
    governor: str | None
    """How the clock is chosen; None where the machine does not say."""
    load_average: float | None
    """Of the last minute, before the measurement began; None where a board does not say."""
    system: str
    """Kernel and its version."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """One processor of a board."""

    cpu: int
    """Its number, as `--cpus` takes it."""
    max_mhz: float | None = None
    cur_mhz: float | None = None
    governor: str | None = None
    capacity: int | None = None
    """The kernel's figure for its speed, 1024 for the fastest; None where all are alike."""
    core: str | None = None
    """Its kind, `Cortex-A76`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFacts:
    """What a board's agent says of the board; None, or empty, where it does not know."""

    cpu: str = "unknown"
    board: str | None = None
    """The board's model, by its device tree."""
    machine: str | None = None
    """`aarch64`, ..."""
    features: tuple[str, ...] = ()
    cores: int | None = None
    cpus: tuple[CpuFacts, ...] = field(default=())
    temperature_c: float | None = None
    memory_total_mib: float | None = None
    memory_free_mib: float | None = None
    kernel: str | None = None
    glibc: str | None = None
    tvm: str | None = None
    emulated: bool = False

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> BoardFacts:
        """Read an agent's answer; what is missing or of another form counts as not known."""

        def text(value: object) -> str | None:
            return value if isinstance(value, str) and value else None

        def number(value: object) -> float | None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if is_number else None  # type: ignore[arg-type]

        def whole(value: object) -> int | None:
            return value if isinstance(value, int) and not isinstance(value, bool) else None

        def several(value: object) -> list[Any]:
            return list(value) if isinstance(value, list | tuple) else []

        features = content.get("features")
        words = features.split() if isinstance(features, str) else several(features)
        return cls(
            cpu=text(content.get("cpu")) or "unknown",
            board=text(content.get("board")),
            machine=text(content.get("machine")),
            features=tuple(str(word) for word in words),
            cores=whole(content.get("cores")),
            cpus=tuple(
                CpuFacts(
                    cpu=whole(one.get("cpu")) or 0,
                    max_mhz=number(one.get("max_mhz")),
                    cur_mhz=number(one.get("cur_mhz")),
                    governor=text(one.get("governor")),
                    capacity=whole(one.get("capacity")),
                    core=text(one.get("core")),
                )
                for one in several(content.get("cpus"))
                if isinstance(one, Mapping)
            ),
            temperature_c=number(content.get("temperature_c")),
            memory_total_mib=number(content.get("memory_total_mib")),
            memory_free_mib=number(content.get("memory_free_mib")),
            kernel=text(content.get("kernel")),
            glibc=text(content.get("glibc")),
            tvm=text(content.get("tvm")),
            emulated=content.get("emulated") is True,
        )

    @property
    def governors(self) -> tuple[str, ...]:
        """Every governor in use, each once."""
        return tuple(dict.fromkeys(cpu.governor for cpu in self.cpus if cpu.governor))

    @property
    def clock_mhz(self) -> float | None:
        """The clock of the fastest processor right now."""
        return max((cpu.cur_mhz for cpu in self.cpus if cpu.cur_mhz), default=None)

    def host_facts(self) -> HostFacts:
        """Return the part that is kept with every measurement."""
        return HostFacts(
            cpu=self.cpu,
            machine=self.machine or "unknown",
            cpus=len(self.cpus) or self.cores or 0,
            governor=", ".join(self.governors) or None,
            load_average=None,
            system=f"Linux {self.kernel}" if self.kernel else "unknown",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "features": list(self.features)}


def throttling(before: BoardFacts, after: BoardFacts, cpus: tuple[int, ...] = ()) -> list[str]:
    """Say what suggests that a board lowered its clock while it measured.

    Args:
        before: what it said before the first inference.
        after: what it said right after the last one.
        cpus: the processors that computed; empty for all.
    """
    found = []
    if after.temperature_c is not None and after.temperature_c >= _HOT_C:
        found.append(
            f"throttling is likely: the board is at {after.temperature_c:.0f} C; cool it, or raise "
            "--cool-down-s"
        )
    earlier = {cpu.cpu: cpu.cur_mhz for cpu in before.cpus}
    for cpu in after.cpus:
        was, now = earlier.get(cpu.cpu), cpu.cur_mhz
        if (cpus and cpu.cpu not in cpus) or not was or not now:
            continue
        if now < (1 - _SLOWER_SHARE) * was:
            found.append(
                f"throttled: processor {cpu.cpu} fell from {was:.0f} to {now:.0f} MHz; cool the "
                "board, or raise --cool-down-s"
            )
            break
    return found


def host_facts() -> HostFacts:
    """Describe this machine."""
    return HostFacts(
        cpu=_cpu_name(),
        machine=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()}",
    )


def _cpu_name() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or "unknown"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
