"""Convolutions that follow each other, each the only reader of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_mobilenet.frontend.dataflow import Binding, constant_array, is_call
from tvm_mobilenet.schedule.anchors import (
    conv_workload,
    gate_of,
    read_input,
    unserved_convolution,
)
from tvm_mobilenet.schedule.cascade import can_follow
from tvm_mobilenet.schedule.chain import Chain, ChainFollower
from tvm_mobilenet.schedule.workload import ConvWorkload

__all__ = ["Stage", "find_run"]


@dataclass(frozen=True)
class Stage:
    """One convolution of a run."""

    workload: ConvWorkload
    chain: Chain
    x: Any
    """What it reads."""
    weight: np.ndarray
    """(O, I/g, kH, kW) f32."""


def find_run(
    binding: Binding,
    chains: ChainFollower,
    definitions: Mapping[Any, Any],
    users: Mapping[Any, Sequence[Binding]],
) -> list[Stage]:
    """Return the convolutions from `binding` on that a cascade could compute, in order.

    The run ends where a result has several readers, is an output or gets a residual, and before a
    convolution that no cascade takes. Empty if that is the first.
    """
    run: list[Stage] = []
    while True:
        call = binding.value
        weight = constant_array(call.args[1])
        if weight is None or unserved_convolution(call, weight, ("float32",)):
            return run
        chain = chains.follow(binding.var)
        x, layout = read_input(call.args[0], definitions)
        workload = conv_workload(binding, weight, layout, chain.epilogue)
        if workload.is_depthwise and layout == "NCHW":
            x, workload = call.args[0], replace(workload, input_layout="NHWC")
        if run and not can_follow(run[-1].workload, workload):
            return run
        if workload.is_pointwise and gate_of(x, definitions, users):
            return run
        weight = (weight * np.float32(chain.factor)).transpose(0, 3, 1, 2)
        run.append(Stage(workload, chain, x, weight))
        readers = users.get(chain.last, [])
        if len(readers) != 1 or readers[0].var is None or chain.residual is not None:
            return run
        binding = readers[0]
        is_next = is_call(binding.value, "nn.conv2d")
        if not is_next or not binding.value.args[0].same_as(chain.last):
            return run
