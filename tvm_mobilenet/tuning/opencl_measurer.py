"""Measuring on this machine's OpenCL device, in a process of its own that a candidate may crash."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet.tuning.process_measurer import ProcessMeasurer

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["OpenCLMeasurer"]

_TIMEOUT_S = 60.0
"""A driver builds a kernel at its first launch, and for each shape of its work-groups."""
_COLD_BYTES = 8 << 20
"""Copies of the weights fill about so much: more than the last cache of a small GPU."""


class OpenCLMeasurer(ProcessMeasurer):
    """The first OpenCL device of this machine; see `Measurer`.

    Args:
        target: the target that describes it.
        cache: `cold` for weights from copies in turn, `warm` for always the same.
        timeout_s: after so long a candidate is taken to hang.
    """

    def __init__(
        self,
        target: TargetSpec,
        *,
        cache: Literal["cold", "warm"] = "cold",
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        super().__init__(
            "tvm_mobilenet.tuning.opencl_kernels:OpenCLKernels",
            # Of the processor; a device that shares it with the builders is disturbed by them.
            threads=target.cpu.cores,
            cache=cache,
            cold_bytes=_COLD_BYTES,
            timeout_s=timeout_s,
        )

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What goes into the conditions of a record; the driver is asked once."""
        answer = self.ask({"op": "describe"})
        return {
            "device": answer["device"],
            "governor": None,
            "cost": self.cost,
            "is_emulated": False,
        }

    def floor(self, workload: TunableWorkload) -> float:
        """Return 0: what a driver's device can do at best is not known."""
        return 0.0
