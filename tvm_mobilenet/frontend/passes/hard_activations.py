"""Bring every spelling of hard-swish and hard-sigmoid into the one that kernels recognise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)

__all__ = ["spell_hard_activations"]


def spell_hard_activations(mod: IRModule) -> IRModule:
    """Write hard-swish and hard-sigmoid as a product and a sum between bounds.

    Rewrite:
        1. x * t, then perhaps * s, where t is any chain of sums, products, quotients and bounds
           with constants from x that comes to clip(a * x + b, 0, c)
               ->  multiply(x, minimum(maximum(add(multiply(x, a / c), b / c), 0), 1)), if c * s = 1
        2. any such chain that ends in a product or quotient and comes to clip(a * x + b, l, h)
               ->  minimum(maximum(add(multiply(x, a), b), l), h)
    Shapes:
        any; the constants are scalars, a above 0.

    Case 1 is hard-swish, as `x * relu6(x + 3) / 6`, `x * (relu6(x + 3) / 6)` or
    `x * hard_sigmoid(x)`; case 2 is hard-sigmoid as `relu6(x + 3) / 6`, whose factor then folds
    into the convolution before it. What something else reads too stays as it is.
    Reference: Howard et al. 2019 (arXiv:1905.02244), section 5.2.
    """
    flow = Dataflow(mod)
    spelling = _Spelling(flow)
    bindings: list[Binding] = []
    for binding in flow.bindings:
        bindings += spelling.rewritten(binding)
    return flow.rebuild(bindings)


@dataclass(frozen=True)
class _Chain:
    """clip(slope * x + offset, low, high) of one tensor x."""

    slope: float = 1.0
    offset: float = 0.0
    low: float = -np.inf
    high: float = np.inf

    def then(self, name: str, constant: float, is_second: bool) -> _Chain | None:
        """Return the chain after one more operator, or None where it is no such chain any more."""
        if name in ("add", "subtract"):
            if name == "subtract":
                if not is_second:
                    return None
                constant = -constant
            return _Chain(self.slope, *(v + constant for v in (self.offset, self.low, self.high)))
        if name in ("multiply", "divide"):
            if constant <= 0 or (name == "divide" and not is_second):
                return None
            factor = constant if name == "multiply" else 1 / constant
            return _Chain(*(v * factor for v in (self.slope, self.offset, self.low, self.high)))
        if name == "maximum":
            return replace(self, low=max(self.low, constant)) if constant <= self.high else None
        return replace(self, high=min(self.high, constant)) if constant >= self.low else None


_STEPS = ("add", "subtract", "multiply", "divide", "maximum", "minimum")
_CLOSE = 1e-6
"""Relative: 1/6 is written as 0.16666667 or 0.1667 in float32, and the second is not it."""


class _Spelling:
    def __init__(self, flow: Dataflow) -> None:
        self._definitions = flow.definitions()
        self._users = flow.users()

    def rewritten(self, binding: Binding) -> list[Binding]:
        """Return what stands in place of one binding; itself where no case applies."""
        return self._swish(binding) or self._sigmoid(binding) or [binding]

    def _swish(self, binding: Binding) -> list[Binding] | None:
        """Case 1, from the last operator back."""
        value, factor = binding.value, 1.0
        step = self._step(value)
        if step is not None and step[1] in ("multiply", "divide"):
            product, name, constant, is_second = step
            scaled = _Chain().then(name, constant, is_second)
            if scaled is None or not self._is_read_once(product):
                return None
            value, factor = self._definitions.get(product), scaled.slope
        elif self._is_scaled_later(binding.var):
            return None  # the product alone is no hard-swish, its reader is
        if not is_call(value, "multiply"):
            return None
        for x, gate in (value.args, reversed(value.args)):
            if not isinstance(x, relax.Var) or not self._is_read_once(gate):
                continue
            chain = self._chain(gate, x)
            if chain is not None and chain.low == 0 and _is_close(chain.high * factor, 1):
                slope, offset = chain.slope * factor, chain.offset * factor
                steps, gated = _spelled(binding.var, x, _Chain(slope, offset, 0.0, 1.0))
                return [*steps, Binding(binding.var, relax.op.multiply(x, gated))]
        return None

    def _sigmoid(self, binding: Binding) -> list[Binding] | None:
        """Case 2: a factor after the bounds goes before them."""
        step = self._step(binding.value)
        if step is None or step[1] not in ("multiply", "divide"):
            return None
        x, has_bounds = step[0], False
        chain: _Chain | None = None
        while self._is_read_once(x):
            inner = self._step(self._definitions.get(x))
            if inner is None:
                break
            has_bounds |= inner[1] in ("maximum", "minimum")
            x = inner[0]
            found = self._chain(binding.var, x)
            if found is None:
                break
            chain, root = found, x
        if chain is None or not has_bounds:
            return None
        steps, bounded = _spelled(binding.var, root, chain)
        last = steps.pop()
        assert last.var.same_as(bounded)
        return [*steps, Binding(binding.var, last.value)]

    def _chain(self, end: Any, start: Any) -> _Chain | None:
        """Describe what is computed from `start` to `end`, each step read by the next alone."""
        steps = []
        at = end
        while not at.same_as(start):
            step = self._step(self._definitions.get(at))
            if step is None or (not at.same_as(end) and not self._is_read_once(at)):
                return None
            steps.append(step)
            at = step[0]
        chain: _Chain | None = _Chain()
        for _, name, constant, is_second in reversed(steps):
            chain = chain.then(name, constant, is_second) if chain is not None else None
        return chain

    def _step(self, value: Any) -> tuple[Any, str, float, bool] | None:
        """Return (tensor, operator, scalar constant, whether the constant comes second)."""
        if not is_call(value, *_STEPS):
            return None
        for tensor, other, is_second in (
            (value.args[0], value.args[1], True),
            (value.args[1], value.args[0], False),
        ):
            array = constant_array(other)
            if not isinstance(tensor, relax.Var) or array is None or array.size != 1:
                continue
            # A constant of higher rank would change the shape of the result.
            if array.dtype == np.float32 and array.ndim <= len(static_shape(tensor)):
                name = value.op.name.removeprefix("relax.")
                return tensor, name, float(array.reshape(())), is_second
        return None

    def _is_read_once(self, var: Any) -> bool:
        return len(self._users.get(var, [])) == 1

    def _is_scaled_later(self, var: Any) -> bool:
        if not self._is_read_once(var):
            return False
        step = self._step(self._users[var][0].value)
        return step is not None and step[1] in ("multiply", "divide")


def _is_close(found: float, expected: float) -> bool:
    return abs(found - expected) <= _CLOSE * expected


def _spelled(name_of: Any, x: Any, chain: _Chain) -> tuple[list[Binding], Any]:
    """Write a chain out; returns its bindings and the last variable."""
    steps: list[Binding] = []

    def emit(operator: Any, constant: float) -> None:
        at = steps[-1].var if steps else x
        var = relax.DataflowVar(f"{name_of.name}_step{len(steps)}", x.ty)
        steps.append(Binding(var, operator(at, relax.const(constant, "float32"))))

    emit(relax.op.multiply, chain.slope)
    emit(relax.op.add, chain.offset)
    if chain.low != -np.inf:
        emit(relax.op.maximum, chain.low)
    if chain.high != np.inf:
        emit(relax.op.minimum, chain.high)
    return steps, steps[-1].var
