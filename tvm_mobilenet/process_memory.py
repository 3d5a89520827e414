"""How much memory this process holds, and the most it has held since one asked to begin anew."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

__all__ = ["peak_bytes", "reset_peak", "resident_bytes"]

_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Make the peak start again from what is resident now (proc(5), clear_refs).

    Where that is not allowed the peak stays that of the whole process, start-up included.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes() -> int:
    """Return what is resident now."""
    return _status_bytes("VmRSS:") or _rusage_bytes()


def peak_bytes() -> int:
    """Return the most that was resident since `reset_peak`."""
    return _status_bytes("VmHWM:") or _rusage_bytes()


def _status_bytes(key: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(key)), None)
    return int(found) * 1024 if found else None


def _rusage_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
