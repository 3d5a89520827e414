"""Measuring on this machine, in a process of its own that a candidate may crash or hang."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.compute_thread import resolve_threads
from tvm_mobilenet.tuning.process_measurer import ProcessMeasurer
from tvm_mobilenet.tuning.tasks import floor_ms

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["LocalMeasurer"]

_COLD_SHARE = 2
"""Copies of the weights fill so many times the second-level caches of all cores."""
_TIMEOUT_S = 20.0
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class LocalMeasurer(ProcessMeasurer):
    """This machine; see `Measurer`.

    Args:
        target: the target that describes it.
        threads: how many threads compute; None for as many as the target has cores.
        cache: `cold` for weights from beyond the cores' caches, `warm` for always the same.
        timeout_s: after so long a candidate is taken to hang.

    Raises:
        SpecError: a number of threads that this machine does not have.
    """

    def __init__(
        self,
        target: TargetSpec,
        *,
        threads: int | None = None,
        cache: Literal["cold", "warm"] = "cold",
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._target = target
        super().__init__(
            "tvm_mobilenet.tuning.measuring:LocalKernels",
            threads=resolve_threads(threads or target.cpu.cores),
            cache=cache,
            cold_bytes=_COLD_SHARE * target.cpu.l2_kib * 1024 * target.cpu.cores,
            timeout_s=timeout_s,
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record."""
        governor = _GOVERNOR.read_text("ascii").strip() if _GOVERNOR.is_file() else None
        return {
            "device": self._target.description,
            "governor": governor,
            "cost": self.cost,
            "is_emulated": False,
        }

    def floor(self, workload: TunableWorkload) -> float:
        """Return the milliseconds that no kernel can beat, at the machine's measured peak."""
        return floor_ms(workload, self._target.cpu, self._peak_gflops, self.threads)

    @cached_property
    def _peak_gflops(self) -> float:
        from tvm_mobilenet.peak import measure_peak

        return measure_peak(self._target, self.threads).gflops
