"""Ranges of activations, by every method."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from tvm_mobilenet.errors import SpecError
from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.quantize.graph import prepare
from tvm_mobilenet.quantize.options import Method, QuantizeOptions
from tvm_mobilenet.quantize.ranges import activation_ranges, least_error_range


def rounded_error(x: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    q = np.clip(np.rint(x / step), np.rint(low / step), np.rint(high / step))
    return float(np.square(q * step - x).mean())


def test_the_least_squared_error_leaves_out_what_hardly_occurs() -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.laplace(0, 1, 200_000), [20.0, 60.0]])
    low, high = least_error_range(*np.histogram(x, bins=2048))
    assert high < 50
    assert rounded_error(x, low, high) < 0.9 * rounded_error(x, x.min(), x.max())
    # No other range of the same shape is better by more than the histogram's coarseness.
    others = [rounded_error(x, low * s, high * s) for s in np.linspace(0.5, 2, 31)]
    assert rounded_error(x, low, high) < 1.05 * min(others)


def test_uniform_values_keep_their_whole_range() -> None:
    low, high = least_error_range(*np.histogram(np.linspace(0, 6, 10_000), bins=2048))
    assert low == 0
    assert high == pytest.approx(6)


@pytest.mark.parametrize("method", get_args(Method))
def test_bounds_of_activations_bound_the_range(
    separable: Any, images: list[Any], method: Any
) -> None:
    graph = prepare(separable(high=6.0, spread=1.0))
    ranges = activation_ranges(graph, images, QuantizeOptions(method=method), NoProgress())
    for name in ("y0a", "y1a", "y2a", "y3a"):
        low, high = ranges[name]
        assert low == 0
        assert 0 < high <= 6
    if method == "minmax":
        assert max(ranges[name][1] for name in ("y0a", "y1a", "y2a")) == 6
    low, high = ranges["x"]
    assert low < 0 < high


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SpecError, match="minmax, percentile, entropy, mse"):
        QuantizeOptions(method="best")  # type: ignore[arg-type]
