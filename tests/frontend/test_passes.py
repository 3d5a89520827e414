"""Each rewrite: what it makes of a small module, and where it keeps its hands off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tvm_mobilenet._tvm import IRModule, relax, tvm
from tvm_mobilenet.errors import PreconditionError
from tvm_mobilenet.frontend.dataflow import Dataflow, constant_array, is_call
from tvm_mobilenet.frontend.passes.fold_batch_norm import fold_batch_norm
from tvm_mobilenet.frontend.passes.fold_padding import fold_padding
from tvm_mobilenet.frontend.passes.simplify_transposes import simplify_transposes
from tvm_mobilenet.frontend.pipeline import canonicalize

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((8, 3, 3, 3), dtype="float32")
SCALE = RNG.standard_normal((1, 8, 1, 1), dtype="float32")
SHIFT = RNG.standard_normal((1, 8, 1, 1), dtype="float32")


def module(body: Callable[[Any, Any], Any], shape: tuple[int, ...] = (1, 3, 6, 6)) -> IRModule:
    """Build a `main` of one dataflow block; `body(builder, x)` returns its result."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder, x))
        builder.emit_func_output(result)
    return builder.get()


def conv(x: Any, padding: tuple[int, ...] = (1, 1, 1, 1)) -> Any:
    return relax.op.nn.conv2d(x, relax.const(WEIGHT), padding=list(padding))


def calls(mod: IRModule) -> list[str]:
    names = []
    for binding in Dataflow(mod).bindings:
        if isinstance(binding.value, relax.Call):
            names.append(binding.value.op.name.removeprefix("relax."))
    return names


def evaluate(mod: IRModule, x: np.ndarray) -> Any:
    target = tvm.target.Target({"kind": "llvm"})
    vm = relax.VirtualMachine(tvm.compile(mod, target=target), tvm.cpu())
    return vm["main"](tvm.runtime.tensor(x)).numpy()


def same_result(before: IRModule, after: IRModule, shape: tuple[int, ...] = (1, 3, 6, 6)) -> None:
    x = RNG.standard_normal(shape, dtype="float32")
    np.testing.assert_allclose(evaluate(after, x), evaluate(before, x), rtol=1e-4, atol=1e-5)


def test_batch_norm_folds_into_weights_and_bias() -> None:
    def body(builder: Any, x: Any) -> Any:
        y = builder.emit(relax.op.add(builder.emit(conv(x)), relax.const(SHIFT)))
        scaled = builder.emit(relax.op.multiply(y, relax.const(SCALE)))
        return builder.emit(relax.op.add(scaled, relax.const(SHIFT)))

    before = module(body)
    after = fold_batch_norm(before)
    assert calls(after) == ["nn.conv2d", "add"]
    weight = constant_array(Dataflow(after).bindings[0].value.args[1])
    assert weight is not None
    np.testing.assert_allclose(weight, WEIGHT * SCALE.reshape(8, 1, 1, 1), rtol=1e-6)
    same_result(before, after)
    assert calls(fold_batch_norm(after)) == calls(after)


def test_batch_norm_stays_where_the_convolution_has_another_reader() -> None:
    def body(builder: Any, x: Any) -> Any:
        y = builder.emit(conv(x))
        scaled = builder.emit(relax.op.multiply(y, relax.const(SCALE)))
        return builder.emit(relax.op.add(scaled, y))

    before = module(body)
    assert calls(fold_batch_norm(before)) == calls(before)


def test_factor_of_another_axis_stays() -> None:
    factor = RNG.standard_normal((1, 1, 1, 6), dtype="float32")

    def body(builder: Any, x: Any) -> Any:
        return builder.emit(relax.op.multiply(builder.emit(conv(x)), relax.const(factor)))

    assert calls(fold_batch_norm(module(body))) == ["nn.conv2d", "multiply"]


def test_zero_padding_folds_into_the_convolution() -> None:
    def body(builder: Any, x: Any) -> Any:
        padded = builder.emit(relax.op.nn.pad(x, [0, 0, 0, 0, 0, 1, 2, 0]))
        return builder.emit(conv(padded, (1, 1, 1, 1)))

    before = module(body)
    after = fold_padding(before)
    assert calls(after) == ["nn.conv2d"]
    assert [int(p) for p in Dataflow(after).bindings[0].value.attrs.padding] == [1, 3, 2, 1]
    same_result(before, after)


@pytest.mark.parametrize(
    ("widths", "value"),
    [([0, 0, 0, 0, 1, 1, 1, 1], 1.0), ([0, 1, 0, 0, 1, 1, 1, 1], 0.0)],
)
def test_other_padding_stays(widths: list[int], value: float) -> None:
    def body(builder: Any, x: Any) -> Any:
        return builder.emit(conv(builder.emit(relax.op.nn.pad(x, widths, pad_value=value))))

    assert calls(fold_padding(module(body))) == ["nn.pad", "nn.conv2d"]


def test_transposes_that_cancel_disappear() -> None:
    def body(builder: Any, x: Any) -> Any:
        there = builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        back = builder.emit(relax.op.permute_dims(there, [0, 3, 1, 2]))
        return builder.emit(relax.op.nn.relu(back))

    assert calls(simplify_transposes(module(body))) == ["nn.relu"]


def test_transposes_that_do_not_cancel_become_one() -> None:
    def body(builder: Any, x: Any) -> Any:
        there = builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        return builder.emit(relax.op.permute_dims(there, [0, 2, 1, 3]))

    before = module(body)
    after = simplify_transposes(before)
    assert calls(after) == ["permute_dims"]
    same_result(before, after)


def test_transpose_of_single_elements_becomes_a_reshape() -> None:
    def body(builder: Any, x: Any) -> Any:
        return builder.emit(relax.op.permute_dims(x, [0, 3, 1, 2]))

    before = module(body, (1, 1, 1, 5))
    after = simplify_transposes(before)
    assert calls(after) == ["reshape"]
    same_result(before, after, (1, 1, 1, 5))


def test_transpose_that_moves_data_stays() -> None:
    def body(builder: Any, x: Any) -> Any:
        return builder.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))

    assert calls(simplify_transposes(module(body))) == ["permute_dims"]


def test_names_survive_the_pipeline() -> None:
    def body(builder: Any, x: Any) -> Any:
        y = builder.emit(conv(x), name_hint="first")
        z = builder.emit(relax.op.maximum(y, relax.const(0.0, "float32")), name_hint="second")
        return builder.emit(relax.op.nn.max_pool2d(z, pool_size=2), name_hint="third")

    flow = Dataflow(canonicalize(module(body)))
    names = [b.var.name for b in flow.bindings if not is_call(b.value, "permute_dims")]
    assert names[:2] == ["first", "second"]


def test_module_with_a_branch_is_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1,), "float32"))
    flag = relax.Var("flag", relax.TensorType((), "bool"))
    with builder.function("main", [x, flag]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(x))
        z = builder.emit(relax.op.nn.relu(y))
        with builder.dataflow():
            out = builder.emit_output(relax.op.nn.relu(z))
        builder.emit_func_output(out)
    with pytest.raises(PreconditionError, match="blocks"):
        Dataflow(builder.get())
