"""Follow what comes after a convolution as far as its kernel can take it over.

What reads nothing but the result so far and constants (bias, factor, hard-swish, bounds of the
activation), or a tensor of its shape (the residual of an inverted bottleneck), belongs to the
kernel's epilogue. The same for every target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.dataflow import Binding, constant_array, is_call, static_shape
from tvm_mobilenet.schedule.workload import Epilogue

__all__ = ["Chain", "ChainFollower"]


@dataclass
class Chain:
    """An anchor and the bindings after it that its kernel takes over."""

    last: Any
    members: list[Any]
    epilogue: Epilogue
    bias: np.ndarray | None = None
    residual: Any | None = None
    factor: float = 1.0
    """To multiply the weights by; the bias has it already."""


class ChainFollower:
    """Finds the chains of one module.

    Args:
        users: the bindings that read each variable; an output of the module is a binding whose
            variable is None.
    """

    def __init__(self, users: Mapping[Any, Sequence[Binding]]) -> None:
        self._users = users

    def follow(self, anchor: Any) -> Chain:
        """Follow the single reader of each result as long as the kernel can take it over."""
        chain = Chain(anchor, [anchor], Epilogue())
        while True:
            readers = self._users.get(chain.last, [])
            if any(reader.var is None for reader in readers):
                return chain
            if len(readers) == 1 and self._absorb(chain, readers[0]):
                taken = [readers[0].var]
            elif len(readers) == 2:
                taken = self._hard_swish(chain)
            else:
                return chain
            if not taken:
                return chain
            chain.last = taken[-1]
            chain.members.extend(taken)

    def _hard_swish(self, chain: Chain) -> list[Any]:
        """Take over x * clip(x / 6 + 1/2, 0, 1), the one spelling there is; return its bindings."""
        x = chain.last
        if not _is_linear(chain.epilogue):
            return []
        taken: list[Any] = []
        readers = self._users.get(x, [])
        for name, constant in _HARD_SWISH:
            steps = [r for r in readers if _is_step(r.value, name, constant)]
            if len(steps) != 1 or len(readers) != (1 if taken else 2):
                return []
            taken.append(steps[0].var)
            readers = self._users.get(taken[-1], [])
        if len(readers) != 1 or not is_call(readers[0].value, "multiply"):
            return []
        if not any(arg.same_as(x) for arg in readers[0].value.args):
            return []
        chain.epilogue = replace(chain.epilogue, activation="hard-swish")
        return [*taken, readers[0].var]

    def _absorb(self, chain: Chain, reader: Binding) -> bool:
        call, epilogue = reader.value, chain.epilogue
        if is_call(call, "multiply") and _is_linear(epilogue) and not epilogue.residual:
            factor = _scalar_operand(call, "multiply")
            if factor is None or static_shape(reader.var) != static_shape(chain.last):
                return False
            chain.factor *= factor
            if chain.bias is not None:
                chain.bias = chain.bias * np.float32(factor)
            return True
        if is_call(call, "add") and _is_linear(epilogue):
            other = call.args[1] if call.args[0].same_as(chain.last) else call.args[0]
            array = constant_array(other)
            shape = static_shape(chain.last)
            if array is not None and array.size == 1 and array.ndim <= len(shape):
                array = np.full(shape[-1], array.reshape(()))
            if array is not None and array.size == shape[-1] and array.shape[-1:] == shape[-1:]:
                if chain.residual is not None:
                    return False
                bias = array.reshape(-1).astype("float32")
                chain.bias = bias if chain.bias is None else chain.bias + bias
                chain.epilogue = replace(epilogue, bias=True)
                return True
            if (
                chain.residual is None
                and isinstance(other, relax.Var)
                and not other.same_as(chain.last)
                and static_shape(other) == shape
            ):
                chain.residual = other
                chain.epilogue = replace(epilogue, residual=True)
                return True
            return False
        if is_call(call, "sigmoid") and _is_linear(epilogue):
            chain.epilogue = replace(epilogue, activation="sigmoid")
            return True
        bound = _scalar_operand(call, "maximum", "minimum")
        if bound is None:
            return False
        if is_call(call, "maximum"):
            # After an upper bound a lower one wins; the kernel applies the lower first.
            if epilogue.high < bound:
                return False
            chain.epilogue = replace(epilogue, low=max(epilogue.low, bound))
        else:
            if bound < epilogue.low:
                return False
            chain.epilogue = replace(epilogue, high=min(epilogue.high, bound))
        return True


_HARD_SWISH = (("multiply", 1 / 6), ("add", 0.5), ("maximum", 0.0), ("minimum", 1.0))
"""The gate of hard-swish, as `spell_hard_activations` writes it."""


def _is_linear(epilogue: Epilogue) -> bool:
    """Tell whether nothing but a bias and a residual has been applied so far."""
    has_bounds = epilogue.low != -np.inf or epilogue.high != np.inf
    return not has_bounds and epilogue.activation == "none"


def _scalar_operand(call: Any, *names: str) -> float | None:
    """Return the constant of `op(x, c)` with `op` one of `names`, in either order."""
    if not is_call(call, *names):
        return None
    for arg in call.args:
        array = constant_array(arg)
        if array is not None:
            return float(array.reshape(())) if array.size == 1 else None
    return None


def _is_step(call: Any, name: str, constant: float) -> bool:
    operand = _scalar_operand(call, name)
    # Wide enough for a constant that was rounded to 16 bits.
    return operand is not None and abs(operand - constant) <= abs(constant) * 2**-8
