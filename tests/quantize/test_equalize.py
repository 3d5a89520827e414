"""Equalization changes weights and not what is computed, and undoes what hurts int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_mobilenet.protocols import NoProgress
from tvm_mobilenet.quantize.equalize import equalizable_pairs, equalize
from tvm_mobilenet.quantize.graph import FloatGraph, prepare
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quality import output_noise
from tvm_mobilenet.quantize.ranges import activation_ranges
from tvm_mobilenet.quantize.sessions import Probe
from tvm_mobilenet.quantize.writer import write_qdq


def outputs(graph: FloatGraph, inputs: list[Any]) -> np.ndarray:
    return np.concatenate([found["y"] for found in Probe(graph.model, ["y"]).over(inputs)])


@pytest.mark.parametrize("high", [None, 6.0])
def test_the_function_stays_the_same(separable: Any, images: list[Any], high: float | None) -> None:
    before, after = (
        prepare(separable(high=high, spread=1.0)),
        prepare(separable(high=high, spread=1.0)),
    )
    assert [(p.first.name, p.second.name) for p in equalizable_pairs(after)] == [
        ("stem", "dw"),
        ("dw", "pw"),
        ("pw", "last"),
    ]
    assert equalize(after, images) > 0
    expected = outputs(before, images)
    np.testing.assert_allclose(outputs(after, images), expected, atol=1e-4 * np.abs(expected).max())


def test_a_channel_that_reaches_the_bound_of_relu6_keeps_its_scale(
    separable: Any, images: list[Any]
) -> None:
    graph = prepare(separable(high=6.0, spread=1.5))
    before = graph.weights("w0").copy()
    probe = Probe(graph.model, ["y0"])
    top = np.max([found["y0"].max(axis=(0, 2, 3)) for found in probe.over(images)], axis=0)
    equalize(graph, images)
    factor = (graph.weights("w0") / before).reshape(16, -1)[:, 0]
    assert (top > 6).any()
    assert (top < 3).any()
    np.testing.assert_array_equal(factor[top > 6], 1)
    assert (factor[top < 6] * top[top < 6] <= 6).all()
    assert (factor[(top > 0) & (top < 3)] > 1).any()


def test_channels_of_unlike_size_lose_less(separable: Any, images: list[Any]) -> None:
    """Signal over noise of the outputs in int8, in dB, with and without."""
    found = {}
    for does_equalize in (False, True):
        graph = prepare(separable(spread=2.0))
        if does_equalize:
            equalize(graph, images)
        ranges = activation_ranges(graph, images, QuantizeOptions(method="minmax"), NoProgress())
        found[does_equalize] = output_noise(graph, write_qdq(graph, ranges), images)
    assert found[True] > found[False] + 6
