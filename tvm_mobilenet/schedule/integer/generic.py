"""An integer workload without the numbers that its speed does not depend on.

Zero points, scales and bounds differ from layer to layer and from calibration to calibration; of
them, kernels are the same but for constants. A search tunes the generic workload, and its records
serve every layer that has it. What does change instructions stays: a zero point of 0 or -128,
bounds within the range, steps that may overflow.
"""

from __future__ import annotations

from dataclasses import replace

from tvm_mobilenet.schedule.integer.workload import (
    RANGES,
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
    QuantizeWorkload,
    Requantize,
)

__all__ = ["generic"]

_STEP = 0.03125


def generic(workload: IntegerWorkload) -> IntegerWorkload:
    """Return the workload that stands for all whose kernels are equally fast."""
    w = workload
    requantize = None if w.requantize is None else _requantize(w.requantize)
    if isinstance(w, IntegerMatmulWorkload):
        return replace(w, requantize=requantize)
    if isinstance(w, IntegerConvWorkload):
        return replace(w, requantize=requantize, pad=0)
    assert requantize is not None
    if isinstance(w, IntegerPoolWorkload):
        # A mean of whole numbers, and a scale that float32 holds exactly.
        scale = 2.0 ** -(w.pixels - 1).bit_length()
        return replace(w, requantize=requantize, bias=0, scale=scale)
    if isinstance(w, IntegerAddWorkload):
        return replace(
            w,
            a_zero_point=int(w.a_zero_point != 0),
            a_factor=0.5,
            b_zero_point=int(w.b_zero_point != 0),
            b_factor=0.25,
            requantize=requantize,
        )
    assert isinstance(w, QuantizeWorkload)
    return replace(w, step=_STEP, requantize=requantize)


def _requantize(requantize: Requantize) -> Requantize:
    r = requantize
    least, greatest = RANGES[r.dtype]
    zero_point = r.zero_point if r.zero_point in (0, -128) else 1
    return replace(
        r,
        zero_point=zero_point,
        low=least if r.low == least else least + 1,
        high=greatest if r.high == greatest else greatest - 1,
    )
