"""Storing a float32 model in 16 bits: what is converted, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.qdq_models import QdqGraph
from tests.frontend.test_passes import module
from tvm_mobilenet._tvm import relax
from tvm_mobilenet.errors import SpecError, UsageError
from tvm_mobilenet.frontend.dataflow import Dataflow, is_call
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.passes.half_precision import HALF_DTYPES, Half, store_in_half
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.precision import Precision, choose_precision
from tvm_mobilenet.targets import load_target

RNG = np.random.default_rng(5)


def network(builder: Any, x: Any, largest: float = 1.0) -> Any:
    """A convolution, ReLU, the mean over pixels, a dense layer and softmax."""
    weight = np.full((8, 3, 1, 1), largest, "float32")
    y = builder.emit(relax.op.nn.conv2d(x, relax.const(weight)))
    y = builder.emit(relax.op.maximum(y, relax.const(0.0, "float32")))
    y = builder.emit(relax.op.mean(y, axis=[2, 3], keepdims=False))
    y = builder.emit(relax.op.matmul(y, relax.const(RNG.standard_normal((8, 5), dtype="float32"))))
    return relax.op.nn.softmax(y)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_layers_are_stored_in_half_and_the_interface_is_not(dtype: Half) -> None:
    mod = canonicalize(module(network), dtype)
    flow = Dataflow(mod)
    assert [str(param.ty.dtype) for param in flow.params] == ["float32"]
    assert [str(output.ty.dtype) for output in flow.outputs()] == ["float32"]
    by_operator = {b.value.op.name.removeprefix("relax."): b for b in flow.bindings}
    for name in ("nn.conv2d", "maximum", "mean", "matmul"):
        assert str(by_operator[name].var.ty.dtype) == dtype
        assert all(str(arg.ty.dtype) == dtype for arg in by_operator[name].value.args)
    assert str(by_operator["nn.softmax"].value.args[0].ty.dtype) == "float32"
    casts = [b for b in flow.bindings if is_call(b.value, "astype")]
    assert len(casts) == 2  # the input, and what softmax reads


def test_what_two_operators_read_is_converted_once() -> None:
    def body(builder: Any, x: Any) -> Any:
        a = builder.emit(relax.op.add(x, x))
        return relax.op.add(builder.emit(relax.op.exp(a)), x)

    flow = Dataflow(store_in_half(module(body), "float16"))
    names = [str(b.var.ty.dtype) for b in flow.bindings if is_call(b.value, "astype")]
    # x and exp(a) to float16, a and the result back.
    assert sorted(names) == ["float16", "float16", "float32", "float32"]


def test_a_mean_over_channels_stays_in_float32() -> None:
    mod = store_in_half(module(lambda builder, x: relax.op.mean(x, axis=[3])), "float16")
    (mean,) = Dataflow(mod).bindings
    assert str(mean.value.args[0].ty.dtype) == "float32"


def test_a_weight_beyond_float16_is_named_and_fits_bfloat16() -> None:
    mod = module(lambda builder, x: network(builder, x, 7e4))
    with pytest.raises(UsageError, match=r"7e\+04.*6\.55e\+04.*--dtype bfloat16"):
        canonicalize(mod, "float16")
    canonicalize(mod, "bfloat16")


def test_a_quantized_model_keeps_its_integers() -> None:
    graph = QdqGraph()
    graph.quantize(graph.through("x", "xd", 0.1, np.int8(0)), "y", 0.1, np.int8(0))
    mod = import_onnx(graph.model((1, 3, 4, 4), "y", (1, 3, 4, 4), "int8"))
    with pytest.raises(UsageError, match=r"quantized.*leave --dtype out"):
        canonicalize(mod, "float16")


def test_the_default_sum_is_the_targets_own() -> None:
    assert choose_precision("float32", None, load_target("rpi4")) == Precision()
    assert choose_precision("float16", None, load_target("rpi5")).accumulate == "float16"
    assert choose_precision("float16", "float32", load_target("rpi5")).accumulate == "float32"
    assert choose_precision("float16", None, load_target("rk3588-mali")).accumulate == "float32"
    bfloat = load_target("x86-64-avx512-bf16")
    assert choose_precision("bfloat16", None, bfloat) == Precision("bfloat16", "float32")


@pytest.mark.parametrize(
    ("dtype", "accumulate", "target", "message"),
    [
        ("float16", None, "rpi4", r"rpi4 has no arithmetic on it \(cpu.has_fp16 is false\)"),
        ("bfloat16", None, "x86-64-avx512-vnni", r"cpu.has_bf16 is false"),
        ("bfloat16", None, "rk3588-mali", "OpenCL has no bfloat16"),
        ("bfloat16", "float16", "x86-64-avx512-bf16", "narrower"),
        ("float32", "float16", "rpi5", "narrower"),
        ("half", None, "rpi5", "choose one of float32, float16, bfloat16"),
        ("float16", "half", "rpi5", "choose one of float32, float16"),
    ],
)
def test_what_a_target_cannot_do_is_an_error(
    dtype: str, accumulate: str | None, target: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        choose_precision(dtype, accumulate, load_target(target))
