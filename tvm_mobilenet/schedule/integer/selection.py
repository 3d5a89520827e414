"""What a selection of integer kernels knows of its module, and what it has chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvm_mobilenet._tvm import IRModule, PrimFunc
from tvm_mobilenet.frontend.dataflow import Dataflow
from tvm_mobilenet.schedule.integer.chain import IntegerTail, TailFollower
from tvm_mobilenet.schedule.integer.generic import generic
from tvm_mobilenet.schedule.integer.workload import ByteWorkload, IntegerWorkload
from tvm_mobilenet.schedule.kernel_calls import KernelCalls

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["IntegerKernel", "IntegerSelection"]


@dataclass(frozen=True)
class IntegerKernel:
    """One integer kernel of the module: what it computes and how."""

    symbol: str
    family: str
    workload: IntegerWorkload | ByteWorkload
    plan: Any
    origin: Literal["computed", "tuned"] = "computed"


class IntegerSelection:
    """The kernels of one module, in the making.

    Args:
        mod: the module.
        cpu: the processor that they are for.
        recorded: given a family and a generic workload, the recorded plan, or None.
    """

    def __init__(
        self, mod: IRModule, cpu: Cpu, recorded: Callable[[str, IntegerWorkload], Any] | None
    ) -> None:
        self.flow = Dataflow(mod)
        self.calls = KernelCalls(self.flow)
        self.kernels: list[IntegerKernel] = []
        self.cpu = cpu
        self.users = self.flow.users()
        self.tails = TailFollower(self.users)
        self.definitions = self.flow.definitions()
        self._recorded = recorded or (lambda _family, _workload: None)
        self._tuned: set[tuple[str, IntegerWorkload]] = set()

    def plan(self, family: str, workload: Any, compute: Callable[..., Any]) -> Any:
        """Return the plan recorded for the generic workload, or the computed one."""
        plan = self._recorded(family, generic(workload))
        if plan is None:
            return compute(workload, self.cpu)
        self._tuned.add((family, workload))
        return plan

    def place(
        self,
        tail: IntegerTail,
        family: str,
        workload: IntegerWorkload | ByteWorkload,
        plan: Any,
        inputs: list[Any],
        write: Callable[[], PrimFunc],
    ) -> None:
        """Put a call of the kernel where the last member of the tail was."""
        what = (workload, plan)
        symbol = self.calls.put(family, what, inputs, tail.last, tail.members, write)
        if symbol is not None:
            is_tuned = (family, workload) in self._tuned
            origin: Literal["computed", "tuned"] = "tuned" if is_tuned else "computed"
            self.kernels.append(IntegerKernel(symbol, family, workload, plan, origin))
