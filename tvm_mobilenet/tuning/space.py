"""The plans that a search may try for a workload: where it starts, what it may change, what not.

A space is what each field may be, one dimension a group of fields that only make sense together
(rows and vectors of a register tile). The computed plan is its first member. What `plan_fault`
refuses is never built, and never taken from a log. `spaces/` says all of this for each family.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
    QuantizeWorkload,
)
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    GatedWorkload,
    MatmulWorkload,
    PoolWorkload,
    SeparableWorkload,
    TunableWorkload,
)
from tvm_mobilenet.tuning.records import Plan, canonical, plan_to_json
from tvm_mobilenet.tuning.spaces import (
    cascade,
    convolution,
    depthwise,
    elementwise,
    gated,
    integer_depthwise,
    integer_product,
    matmul,
    pair,
    pool,
)
from tvm_mobilenet.tuning.spaces.common import Dimension, at, changed

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["Space", "plan_fault"]


_MORE_IDLE = 0.03
"""Share of a kernel's time that cores may idle beyond what they do with the computed plan."""


@dataclass(frozen=True)
class Space:
    """All plans for one workload on one processor.

    With `is_split_free` false nothing decides about threads: one thread that measures cannot judge
    how work is cut among several. Plans of integer kernels that leave cores idle are left out then.
    """

    workload: TunableWorkload
    cpu: Cpu
    is_split_free: bool = True

    @property
    def start(self) -> Plan:
        """The computed plan; for a pair that is not worth fusing, two."""
        plan: Plan = _family(self.workload).start(self.workload, self.cpu)
        return plan

    def seeds(self) -> list[Plan]:
        """Return the start and the other choices that are as good a guess as any."""
        w = self.workload
        if isinstance(w, SeparableWorkload):
            return list(self._usable(pair.seeds(w, self.cpu)))
        return list(self._usable([self.start]))

    def neighbours(self, plan: Plan) -> list[Plan]:
        """Return the plans that differ from `plan` in one dimension."""
        return list(_neighbours(self, plan))

    def step(self, plan: Plan, rng: random.Random) -> Plan | None:
        """Return a plan that differs from `plan` in one dimension, or None by bad luck."""
        path, changes = rng.choice([d for d in self._dimensions(plan) if d[1]])
        return next(self._usable([changed(plan, path, rng.choice(changes))]), None)

    def normal(self, plan: Plan) -> Plan:
        """Return the one spelling of all plans that give the same kernel."""
        w: Any = self.workload
        family = _family(w)
        same: Plan = (
            family.normal(w, plan, self.cpu)
            if isinstance(w, SeparableWorkload | GatedWorkload)
            else family.normal(w, plan)
        )
        return same

    def _usable(self, plans: Iterator[Plan] | Sequence[Plan]) -> Iterator[Plan]:
        """Yield the plans without fault, each once."""
        seen = set()
        for plan in plans:
            normal = self.normal(plan)
            key = canonical(plan_to_json(normal))
            if key in seen or plan_fault(self.workload, normal, self.cpu) is not None:
                continue
            if self.is_split_free or self._is_as_balanced(normal):
                seen.add(key)
                yield normal

    def _is_as_balanced(self, plan: Plan) -> bool:
        """Tell whether cores idle no longer than with the computed plan, where that is known."""
        w, cores = self.workload, self.cpu.cores
        if not isinstance(w, IntegerWorkload) or not getattr(plan, "is_parallel", False):
            return True
        idle = _family(w).idle_share
        return bool(idle(w, plan, cores) <= idle(w, self.start, cores) + _MORE_IDLE)

    def _dimensions(self, plan: Plan) -> list[Dimension]:
        w: Any = self.workload
        found = _family(w).dimensions(w, plan, self.cpu, is_split_free=self.is_split_free)
        if isinstance(w, SeparableWorkload | GatedWorkload):
            return list(found)
        return list(at((), found))


@functools.lru_cache(maxsize=256)
def _neighbours(space: Space, plan: Plan) -> tuple[Plan, ...]:
    return tuple(
        space._usable(
            changed(plan, path, change)
            for path, changes in space._dimensions(plan)
            for change in changes
        )
    )


def plan_fault(workload: TunableWorkload, plan: Plan, cpu: Cpu) -> str | None:
    """Return why a plan cannot be used for a workload on a processor, or None.

    Kernels index memory by their plan: one that does not fit its workload would write outside of
    its output, so whatever comes from a file passes here first.
    """
    fault: str | None = _family(workload).fault(workload, plan, cpu)
    return fault


def _family(workload: TunableWorkload) -> Any:
    """Return the module that knows the space of a workload."""
    if isinstance(workload, ConvWorkload):
        return depthwise if workload.is_depthwise else convolution
    if isinstance(workload, IntegerConvWorkload):
        return integer_depthwise if workload.is_depthwise else integer_product
    return {
        CascadeWorkload: cascade,
        GatedWorkload: gated,
        IntegerAddWorkload: elementwise,
        IntegerMatmulWorkload: integer_product,
        IntegerPoolWorkload: elementwise,
        MatmulWorkload: matmul,
        PoolWorkload: pool,
        QuantizeWorkload: elementwise,
        SeparableWorkload: pair,
    }[type(workload)]
