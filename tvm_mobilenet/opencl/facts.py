"""What OpenCL says of a machine: its devices, or why there are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OpenCLDevice", "OpenCLFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCLDevice:
    """One OpenCL device; sizes in bytes."""

    name: str
    kind: str = "unknown"
    """`gpu`, `cpu`, `accelerator`."""
    platform: str = "unknown"
    version: str = "unknown"
    """The OpenCL that it speaks, as its driver spells it."""
    driver: str = "unknown"
    compute_units: int = 0
    clock_mhz: int = 0
    max_group_size: int = 0
    """Work-items in one work-group; single kernels may take fewer."""
    local_memory_bytes: int = 0
    global_memory_bytes: int = 0
    max_allocation_bytes: int = 0
    """The largest single buffer."""
    float16: bool = False
    float64: bool = False
    images: bool = False
    unified_memory: bool = False
    """Whether it shares its memory with the processor, so that copies can be mappings."""

    def __str__(self) -> str:
        half = ", float16" if self.float16 else ""
        return (
            f"{self.name} ({self.version}, driver {self.driver}), {self.compute_units} compute "
            f"units, work-groups of {self.max_group_size}{half}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCLFacts:
    """What a machine's OpenCL runtime found."""

    devices: tuple[OpenCLDevice, ...] = ()
    library: str | None = None
    """The OpenCL library in use; None where there is none."""
    reason: str | None = None
    """Why there is no device; None where there is one."""
    cache: str | None = None
    """Where built programs are kept; None where they are not."""

    @classmethod
    def of_json(cls, text: str) -> OpenCLFacts:
        """Read what the runtime library describes; see `native/opencl_runtime/describe.h`."""
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> OpenCLFacts:
        """Read the same from a board's answer; fields that are not known here are left out."""
        known = set(OpenCLDevice.__dataclass_fields__)
        return cls(
            devices=tuple(
                OpenCLDevice(**{key: value for key, value in one.items() if key in known})
                for one in content.get("devices", ())
            ),
            library=content.get("library"),
            reason=content.get("reason"),
            cache=content.get("cache"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)
