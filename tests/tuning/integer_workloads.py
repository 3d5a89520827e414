"""Integer workloads of every family, as a search tunes them: small, with tails."""

from __future__ import annotations

from dataclasses import replace

from tvm_mobilenet.schedule.integer.workload import (
    IntegerAddWorkload,
    IntegerConvWorkload,
    IntegerMatmulWorkload,
    IntegerPoolWorkload,
    IntegerWorkload,
    QuantizeWorkload,
    Requantize,
)

UINT8 = Requantize(dtype="uint8", zero_point=0, low=0, high=255)
INT8 = Requantize(dtype="int8", zero_point=1, low=-127, high=127)
PRODUCT = IntegerMatmulWorkload(rows=49, depth=136, columns=40, dtype="uint8", requantize=UINT8)
DEPTHWISE = IntegerConvWorkload(
    batch=1,
    height=9,
    width=8,
    in_channels=40,
    out_channels=40,
    kernel=(3, 3),
    padding=(1, 1, 1, 1),
    groups=40,
    dtype="uint8",
    requantize=UINT8,
)
FAMILIES: dict[str, tuple[str, IntegerWorkload]] = {
    "product": ("int8_pointwise", PRODUCT),
    "signed": ("int8_pointwise", replace(PRODUCT, dtype="int8", requantize=INT8)),
    "dense": (
        "int8_dense",
        IntegerMatmulWorkload(rows=1, depth=128, columns=21, dtype="uint8", requantize=None),
    ),
    "depthwise": ("int8_depthwise", DEPTHWISE),
    "strided": (
        "int8_depthwise",
        replace(DEPTHWISE, stride=(2, 2), dtype="int8", requantize=INT8),
    ),
    "stem": (
        "int8_conv",
        IntegerConvWorkload(
            batch=1,
            height=17,
            width=17,
            in_channels=3,
            out_channels=12,
            kernel=(3, 3),
            stride=(2, 2),
            padding=(0, 0, 1, 1),
            dtype="uint8",
            requantize=UINT8,
        ),
    ),
    "pool": (
        "int8_pool",
        IntegerPoolWorkload(
            batch=2,
            pixels=49,
            channels=56,
            bias=0,
            scale=2.0**-6,
            dtype="uint8",
            requantize=UINT8,
        ),
    ),
    "add": (
        "int8_add",
        IntegerAddWorkload(
            elements=1000,
            a_dtype="uint8",
            a_zero_point=1,
            a_factor=0.5,
            b_dtype="uint8",
            b_zero_point=0,
            b_factor=0.25,
            requantize=UINT8,
        ),
    ),
    "quantize": (
        "int8_quantize",
        QuantizeWorkload(
            batch=1,
            channels=3,
            pixels=225,
            step=0.03125,
            requantize=replace(UINT8, may_overflow=True),
        ),
    ),
}
