"""Taps on padding left out, resizing after convolutions, and branches spread from one pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.test_passes import RNG, calls, evaluate, module, same_result
from tvm_mobilenet._tvm import IRModule, relax
from tvm_mobilenet.frontend.dataflow import Dataflow, constant_array, is_call
from tvm_mobilenet.frontend.passes.simplify_resize import simplify_resize
from tvm_mobilenet.frontend.passes.simplify_transposes import simplify_transposes
from tvm_mobilenet.frontend.passes.split_phases import split_phases
from tvm_mobilenet.frontend.passes.trim_taps import trim_taps

SHAPE = (1, 3, 6, 6)


def weights(out: int, taps: int, channels: int = 3) -> Any:
    return relax.const(RNG.standard_normal((out, channels, taps, taps), dtype="float32"))


def conv_of(mod: Any) -> tuple[tuple[int, ...], list[int]]:
    (conv,) = (b.value for b in Dataflow(mod).bindings if is_call(b.value, "nn.conv2d"))
    array = constant_array(conv.args[1])
    assert array is not None
    return array.shape, [int(p) for p in conv.attrs.padding]


@pytest.mark.parametrize(
    ("rate", "padding", "stride", "shape", "pads"),
    [
        (6, 6, 1, (8, 3, 1, 1), [0, 0, 0, 0]),
        (5, 5, 1, (8, 3, 3, 3), [5, 5, 5, 5]),
        (36, 36, 1, (8, 3, 1, 1), [0, 0, 0, 0]),
        # Strides of 3 with a rate of 4: the first tap reads -4 and -1, the others the image.
        (4, 4, 3, (8, 3, 2, 2), [0, 0, 4, 4]),
    ],
)
def test_taps_that_only_meet_padding_are_cut_off(rate, padding, stride, shape, pads) -> None:
    def body(builder: Any, x: Any) -> Any:
        del builder
        return relax.op.nn.conv2d(
            x, weights(8, 3), strides=stride, padding=[padding] * 4, dilation=rate
        )

    before = module(body, SHAPE)
    after = trim_taps(before)
    assert conv_of(after) == (shape, pads)
    same_result(before, after, SHAPE)
    assert conv_of(trim_taps(after)) == (shape, pads)


def resized(x: Any, size: tuple[int, int], mode: str = "half_pixel") -> Any:
    return relax.op.image.resize2d(
        x, size, layout="NCHW", method="linear", coordinate_transformation_mode=mode
    )


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners"])
def test_a_pointwise_convolution_comes_before_the_resize(mode) -> None:
    bias = relax.const(RNG.standard_normal((1, 2, 1, 1), dtype="float32"))

    def body(builder: Any, x: Any) -> Any:
        big = builder.emit(resized(x, (13, 9), mode))
        return relax.op.add(builder.emit(relax.op.nn.conv2d(big, weights(2, 1))), bias)

    before = module(body, SHAPE)
    after = simplify_resize(before)
    assert calls(after) == ["nn.conv2d", "add", "image.resize2d"]
    same_result(before, after, SHAPE)
    assert calls(simplify_resize(after)) == calls(after)


@pytest.mark.parametrize(
    ("out", "taps", "size", "again"),
    [(4, 1, (12, 12), False), (2, 3, (12, 12), False), (2, 1, (5, 6), False), (2, 1, (9, 9), True)],
    ids=["more outputs", "3x3", "shrinks", "read twice"],
)
def test_other_convolutions_stay_behind_the_resize(out, taps, size, again) -> None:
    def body(builder: Any, x: Any) -> Any:
        big = builder.emit(resized(x, size))
        y = builder.emit(relax.op.nn.conv2d(big, weights(out, taps)))
        return relax.op.concat([big, y], 1) if again else y

    before = module(body, SHAPE)
    assert calls(simplify_resize(before)) == calls(before)


def test_one_pixel_is_spread() -> None:
    shape = (2, 3, 1, 1)
    before = module(lambda _builder, x: resized(x, (4, 5)), shape)
    after = simplify_resize(before)
    assert calls(after) == ["broadcast_to"]
    same_result(before, after, shape)


def test_a_transpose_of_a_spread_pixel_moves_inside() -> None:
    def body(builder: Any, x: Any) -> Any:
        spread = builder.emit(relax.op.broadcast_to(x, (2, 3, 4, 5)))
        return relax.op.permute_dims(spread, [0, 2, 3, 1])

    shape = (2, 3, 1, 1)
    before = module(body, shape)
    after = simplify_transposes(before)
    assert calls(after) == ["reshape", "broadcast_to"]
    same_result(before, after, shape)
    assert np.prod(Dataflow(after).bindings[-1].var.ty.shape) == 120


def integers(
    rate: int, padding: int, shape: tuple[int, ...], groups: int, taps: int = 3
) -> tuple[IRModule, np.ndarray]:
    """A layer of integers as `integerize` writes it: padded, convolved, biased and rounded."""
    channels = shape[3]
    kernel = RNG.integers(-127, 128, (channels, taps, taps, channels // groups)).astype("int8")
    bias = RNG.integers(-999, 999, (1, 1, 1, channels)).astype("int32")
    factor = RNG.uniform(0.001, 0.002, (1, 1, 1, channels)).astype("float32")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            widths = [0, 0, padding, padding, padding, padding, 0, 0]
            padded = builder.emit(relax.op.nn.pad(x, widths, pad_value=-3))
            conv = relax.op.nn.conv2d(
                padded,
                relax.const(kernel),
                dilation=rate,
                groups=groups,
                data_layout="NHWC",
                kernel_layout="OHWI",
                out_dtype="int32",
            )
            y = builder.emit(relax.op.add(builder.emit(conv), relax.const(bias)))
            y = builder.emit(relax.op.astype(y, "float32"))
            y = builder.emit(relax.op.multiply(y, relax.const(factor)))
            y = builder.emit(relax.op.round(y))
            y = builder.emit(relax.op.maximum(y, relax.const(-128.0)))
            y = builder.emit(relax.op.minimum(y, relax.const(127.0)))
            result = builder.emit_output(relax.op.astype(y, "int8"))
        builder.emit_func_output(result)
    return builder.get(), RNG.integers(-128, 128, shape).astype("int8")


@pytest.mark.parametrize(
    ("rate", "shape", "groups", "taps"),
    [(2, (1, 6, 8, 4), 4, 3), (2, (2, 5, 7, 4), 4, 5), (3, (1, 7, 6, 4), 1, 3)],
)
def test_an_atrous_convolution_of_integers_is_split_into_phases(rate, shape, groups, taps) -> None:
    before, x = integers(rate, taps // 2 * rate, shape, groups, taps)
    after = split_phases(before)
    (conv,) = (b.value for b in Dataflow(after).bindings if is_call(b.value, "nn.conv2d"))
    assert [int(d) for d in conv.attrs.dilation] == [1, 1]
    assert int(conv.args[0].ty.shape[0]) == rate * rate * shape[0]
    np.testing.assert_array_equal(evaluate(after, x), evaluate(before, x))
    # The phases come together once, at the end of the layer.
    assert calls(after).count("permute_dims") == 2
    assert calls(split_phases(after)) == calls(after)


@pytest.mark.parametrize(("rate", "padding"), [(1, 1), (5, 5), (2, 1)])
def test_other_convolutions_of_integers_keep_their_picture(rate, padding) -> None:
    before, _ = integers(rate, padding, (1, 12, 12, 4), 4)
    assert calls(split_phases(before)) == calls(before)
