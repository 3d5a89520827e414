"""Every spelling of hard-swish and hard-sigmoid, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.frontend.test_passes import calls, evaluate, module
from tvm_mobilenet._tvm import relax
from tvm_mobilenet.frontend.passes.hard_activations import spell_hard_activations

SHAPE = (1, 8, 4, 4)
X = np.linspace(-6, 6, 128, dtype="float32").reshape(SHAPE)
CANONICAL = ["multiply", "add", "maximum", "minimum"]


class Steps:
    """Emits one operator after the other; constants are float32 scalars."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def __getattr__(self, name: str) -> Callable[[Any, Any], Any]:
        def emit(a: Any, b: Any) -> Any:
            a, b = (relax.const(v, "float32") if isinstance(v, float) else v for v in (a, b))
            return self.builder.emit(getattr(relax.op, name)(a, b))

        return emit

    def relu6(self, x: Any) -> Any:
        return self.minimum(self.maximum(x, 0.0), 6.0)


SWISHES: dict[str, Callable[[Steps, Any], Any]] = {
    "x * relu6(x + 3) / 6": lambda s, x: s.divide(s.multiply(x, s.relu6(s.add(x, 3.0))), 6.0),
    "x * (relu6(x + 3) / 6)": lambda s, x: s.multiply(x, s.divide(s.relu6(s.add(x, 3.0)), 6.0)),
    "x * (relu6(x + 3) * (1/6))": lambda s, x: s.multiply(
        s.multiply(s.relu6(s.add(3.0, x)), 1 / 6), x
    ),
    "(1/6) * (relu6(x - -3) * x)": lambda s, x: s.multiply(
        1 / 6, s.multiply(s.relu6(s.subtract(x, -3.0)), x)
    ),
    "x * clip(x / 6 + 1/2, 0, 1)": lambda s, x: s.multiply(
        x, s.minimum(s.maximum(s.add(s.multiply(x, 1 / 6), 0.5), 0.0), 1.0)
    ),
    "x * max(min(x + 3, 6), 0) / 6": lambda s, x: s.divide(
        s.multiply(x, s.maximum(s.minimum(s.add(x, 3.0), 6.0), 0.0)), 6.0
    ),
}


@pytest.mark.parametrize("spelling", SWISHES)
def test_hard_swish_is_brought_into_one_spelling(spelling):
    before = module(lambda builder, x: SWISHES[spelling](Steps(builder), x), SHAPE)
    after = spell_hard_activations(before)
    assert calls(after) == [*CANONICAL, "multiply"]
    expected = X * np.clip(X / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(evaluate(before, X), expected, atol=1e-6)
    np.testing.assert_allclose(evaluate(after, X), expected, atol=1e-6)
    assert calls(spell_hard_activations(after)) == calls(after)


SIGMOIDS: dict[str, Callable[[Steps, Any], Any]] = {
    "relu6(x + 3) / 6": lambda s, x: s.divide(s.relu6(s.add(x, 3.0)), 6.0),
    "relu6(x + 3) * (1/6)": lambda s, x: s.multiply(s.relu6(s.add(x, 3.0)), 1 / 6),
    "clip(x / 6 + 1/2, 0, 1)": lambda s, x: s.minimum(
        s.maximum(s.add(s.multiply(x, 1 / 6), 0.5), 0.0), 1.0
    ),
}


@pytest.mark.parametrize("spelling", SIGMOIDS)
def test_hard_sigmoid_ends_in_its_bounds(spelling):
    before = module(lambda builder, x: SIGMOIDS[spelling](Steps(builder), x), SHAPE)
    after = spell_hard_activations(before)
    assert calls(after) == CANONICAL
    np.testing.assert_allclose(evaluate(after, X), np.clip(X / 6 + 0.5, 0, 1), atol=1e-6)


def another_reader(s: Steps, x: Any) -> Any:
    gate = s.relu6(s.add(x, 3.0))
    return s.add(s.divide(s.multiply(x, gate), 6.0), gate)


LOOKALIKES: dict[str, Callable[[Steps, Any], Any]] = {
    "a factor that does not fit": lambda s, x: s.multiply(x, s.relu6(s.add(x, 3.0))),
    "another tensor": lambda s, x: s.multiply(s.add(x, x), s.relu6(s.add(x, 3.0))),
    "a lower bound that is not 0": lambda s, x: s.multiply(
        x, s.minimum(s.maximum(s.add(x, 3.0), -1.0), 1.0)
    ),
    "no bounds": lambda s, x: s.multiply(x, s.add(x, 3.0)),
    "a negative factor": lambda s, x: s.multiply(s.relu6(x), -1.0),
    "a constant over the numerator": lambda s, x: s.divide(6.0, s.add(s.relu6(x), 1.0)),
    "a gate that something else reads": another_reader,
}


@pytest.mark.parametrize("what", LOOKALIKES)
def test_what_only_looks_like_one_stays(what):
    before = module(lambda builder, x: LOOKALIKES[what](Steps(builder), x), SHAPE)
    after = spell_hard_activations(before)
    assert calls(after) == calls(before)
    np.testing.assert_array_equal(evaluate(after, X), evaluate(before, X))
