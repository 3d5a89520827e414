"""The call of a kernel of MetaSchedule's stock rules, its weights packed by its own library."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_mobilenet._tvm import tvm
from tvm_mobilenet.schedule.workload import TunableWorkload
from tvm_mobilenet.tuning.kernels import Call
from tvm_mobilenet.tuning.reference import Operands, output_shape
from tvm_mobilenet.tuning.stock_plan import StockPlan

__all__ = ["stock_call"]


def stock_call(
    library: Any, plan: StockPlan, workload: TunableWorkload, operands: Operands
) -> Call:
    """Return what a stock kernel is called with; packing is not part of the call."""
    assert operands.weights is not None
    weights = operands.weights
    if plan.packed:
        packed = tvm.runtime.tensor(np.zeros(plan.packed, np.float32))
        library["prepack"](tvm.runtime.tensor(weights), packed)
        weights = packed.numpy()
    inputs = [operands.x, weights]
    if operands.bias is not None:
        inputs.append(operands.bias)
    constants = frozenset(range(1, len(inputs)))
    if operands.residual is not None:
        inputs.append(operands.residual)
    return Call("first", tuple(inputs), constants, output_shape(workload))
