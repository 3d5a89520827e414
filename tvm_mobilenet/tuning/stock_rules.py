"""MetaSchedule with its stock rules, asked for candidates only. In a worker process.

It is given what a task computes, as tensor expressions, and answers with scheduled kernels; those
are built and measured as any other candidate, and it is told what they took.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvm_mobilenet._tvm import IRModule, PrimFunc, relax, tvm
from tvm_mobilenet.schedule.workload import ConvWorkload, Epilogue, MatmulWorkload
from tvm_mobilenet.targets import TargetSpec
from tvm_mobilenet.tuning.records import workload_from

__all__ = ["StockRules", "task_function"]

_FAILED_S = 1e10
"""What MetaSchedule itself takes for a candidate that could not be measured."""


class StockRules:
    """Answers `begin`, `propose` and `learn`; see `__call__`.

    Args:
        target: what is tuned for, as JSON.
        threads: how many threads compute.
        population: of the evolutionary search, each generation.
        batch: candidates that a search proposes at a time.
        processors: how many threads search.
        seed: of every choice left to chance.
    """

    def __init__(
        self, target: str, threads: int, population: int, batch: int, processors: int, seed: int = 0
    ) -> None:
        # A worker keeps torch away from TVM's import; SciPy, behind xgboost, stumbles over that.
        kept_away: Mapping[str, object] = sys.modules
        if kept_away.get("torch", self) is None:
            del sys.modules["torch"]
        _import_x86_intrinsics()
        from tvm.s_tir import meta_schedule

        spec = TargetSpec.model_validate_json(target)
        self._ms = meta_schedule
        self._target = tvm.target.Target(
            {**spec.tvm_target().export(), "num-cores": max(1, threads)}
        )
        self._population, self._batch = population, batch
        self._processors, self._seed = processors, seed
        self._contexts: dict[str, Any] = {}
        self._database = meta_schedule.database.MemoryDatabase()
        self._costs = meta_schedule.cost_model.XGBModel(
            extractor=meta_schedule.feature_extractor.PerStoreFeature(),
            # One thread: several wait for each other busily, and on a machine with other work a
            # fit of a tenth of a second takes half a minute.
            num_tuning_cores=1,
        )
        self._proposed: dict[str, list[Any]] = {}

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request about the task of the key `task`.

        `begin` with a `workload`; `propose` answers with `candidates`, each a module to build, a
        trace and the shape of packed weights, none when the space is used up; `learn` with the
        milliseconds of each of them as `costs`, null for one that failed.
        """
        task = request["task"]
        if request["op"] == "begin":
            return self._begin(task, request["workload"])
        if request["op"] == "propose":
            found = self._contexts[task].generate_measure_candidates() or []
            self._proposed[task] = list(found)
            return {"candidates": [_spelled(one.sch) for one in found]}
        return self._learn(task, request["costs"])

    def _begin(self, task: str, workload: dict[str, Any]) -> dict[str, Any]:
        ms = self._ms
        what = workload_from(workload)
        assert isinstance(what, MatmulWorkload | ConvWorkload)
        context = ms.TuneContext(
            IRModule({"main": task_function(what)}),
            target=self._target,
            space_generator=ms.space_generator.PostOrderApply(),
            search_strategy=ms.search_strategy.EvolutionarySearch(population_size=self._population),
            task_name=task,
            rand_state=self._seed + len(self._contexts) + 1,
            num_threads=self._processors,
        )
        # As MetaSchedule's own loop does it: without an end of its own; the budget is ours.
        context.pre_tuning(
            1_000_000,
            self._batch,
            context.generate_design_space(),
            self._database,
            self._costs,
        )
        self._contexts[task] = context
        return {}

    def _learn(self, task: str, costs: list[float | None]) -> dict[str, Any]:
        ms, context, found = self._ms, self._contexts[task], self._proposed.pop(task)
        workload = self._database.commit_workload(context.mod)
        results = []
        for candidate, cost in zip(found, costs, strict=True):
            seconds = [_FAILED_S if cost is None else cost / 1e3]
            failure = "it failed" if cost is None else None
            results.append(ms.runner.RunnerResult(None if failure else seconds, failure))
            self._database.commit_tuning_record(
                ms.database.TuningRecord(
                    candidate.sch.trace, workload, seconds, self._target, candidate.args_info
                )
            )
        self._costs.update(context, found, results)
        context.notify_runner_results(found, results)
        return {}


def _import_x86_intrinsics() -> None:
    """Have TVM's x86 tensor intrinsics registered, and none of the GPUs'.

    A tuning context imports them all: 16 seconds of a processor in a small process, several times
    that beside torch and scikit-learn, since TVM's script parser looks through every module there
    is for each of some two hundred functions.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        return
    from tvm import s_tir

    package = types.ModuleType(name)
    assert s_tir.__file__ is not None
    package.__path__ = [str(Path(s_tir.__file__).parent / "tensor_intrin")]
    sys.modules[name] = package
    importlib.import_module(f"{name}.x86")


def task_function(workload: MatmulWorkload | ConvWorkload) -> PrimFunc:
    """Return what a workload computes, with nothing said of how.

    Parameters are x, weights, then bias and residual where there are any, then y; shapes are those
    of `tuning/reference.py`. The weights may be packed.
    """
    from tvm import te

    from tvm_mobilenet.tuning.reference import make_operands

    operands = make_operands(workload)
    assert operands.weights is not None
    x = te.placeholder(operands.x.shape, name="x")
    w = te.placeholder(operands.weights.shape, name="w")
    inputs = [x, w]
    bias = residual = None
    if operands.bias is not None:
        inputs.append(bias := te.placeholder(operands.bias.shape, name="bias"))
    if operands.residual is not None:
        inputs.append(residual := te.placeholder(operands.residual.shape, name="residual"))
    sums = _product(x, w) if isinstance(workload, MatmulWorkload) else _convolution(workload, x, w)
    y = te.compute(
        sums.shape,
        lambda *at: _finished(
            sums(*at),
            workload.epilogue,
            None if bias is None else bias(at[-1]),
            None if residual is None else residual(*at),
        ),
        name="y",
    )
    function = te.create_prim_func([*inputs, y])
    return function.with_attr({"global_symbol": "main", "layout_free_buffers": [1]})


def _product(x: Any, w: Any) -> Any:
    from tvm import te

    k = te.reduce_axis((0, w.shape[0]), name="k")
    return te.compute(
        (x.shape[0], w.shape[1]), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="sums"
    )


def _convolution(workload: ConvWorkload, x: Any, w: Any) -> Any:
    from tvm import te
    from tvm.topi.nn import pad

    top, left, bottom, right = workload.padding
    is_nhwc = workload.input_layout == "NHWC"
    before, after = ([0, top, left, 0], [0, bottom, right, 0])
    if not is_nhwc:
        before, after = ([0, 0, top, left], [0, 0, bottom, right])
    padded = pad(x, before, after) if any(workload.padding) else x
    (step_y, step_x), (gap_y, gap_x) = workload.stride, workload.dilation
    ky = te.reduce_axis((0, workload.kernel[0]), name="ky")
    kx = te.reduce_axis((0, workload.kernel[1]), name="kx")
    shape = (workload.batch, workload.out_height, workload.out_width, workload.out_channels)

    def pixel(n: Any, row: Any, column: Any, channel: Any) -> Any:
        row, column = row * step_y + ky * gap_y, column * step_x + kx * gap_x
        return padded[n, row, column, channel] if is_nhwc else padded[n, channel, row, column]

    if workload.is_depthwise:
        return te.compute(
            shape,
            lambda n, i, j, o: te.sum(pixel(n, i, j, o) * w[o, 0, ky, kx], axis=[ky, kx]),
            name="sums",
        )
    c = te.reduce_axis((0, workload.in_channels), name="c")
    return te.compute(
        shape,
        lambda n, i, j, o: te.sum(pixel(n, i, j, c) * w[o, c, ky, kx], axis=[ky, kx, c]),
        name="sums",
    )


def _finished(value: Any, epilogue: Epilogue, bias: Any, residual: Any) -> Any:
    from tvm import te

    if bias is not None:
        value = value + bias
    if residual is not None:
        value = value + residual
    if epilogue.activation == "hard-swish":
        value = value * te.min(te.max(value / 6.0 + 0.5, 0.0), 1.0)
    elif epilogue.activation == "sigmoid":
        value = te.sigmoid(value)
    if np.isfinite(epilogue.low):
        value = te.max(value, tvm.tirx.const(epilogue.low, "float32"))
    if np.isfinite(epilogue.high):
        value = te.min(value, tvm.tirx.const(epilogue.high, "float32"))
    return value


def _spelled(schedule: Any) -> dict[str, Any]:
    """Return a scheduled kernel as what is built, its packing of the weights apart."""
    main = schedule.mod["main"]
    builder = relax.BlockBuilder()
    kernel = builder.add_func(main, "main_kernel")
    shapes = [[int(size) for size in parameter.shape] for parameter in main.params]
    inputs = [relax.Var(f"p{i}", relax.TensorType(s, "float32")) for i, s in enumerate(shapes[:-1])]
    with builder.function("model", inputs):
        builder.emit_func_output(
            builder.emit(relax.call_tir(kernel, inputs, relax.TensorType(shapes[-1], "float32")))
        )
    parts = {
        variable.name_hint: function
        for variable, function in relax.transform.SplitLayoutRewritePreproc()(
            builder.get()
        ).functions_items()
        if isinstance(function, PrimFunc)
    }
    # The kernel as it was stays in the module beside the one that takes packed weights.
    prepack = parts.get("main_kernel_weight_prepack")
    first = parts["main_kernel" if prepack is None else "main_kernel_prepacked"]
    module = {"first": first.with_attr("global_symbol", "first")}
    packed: list[int] = []
    if prepack is not None:
        module["prepack"] = prepack.with_attr("global_symbol", "prepack")
        packed = [int(size) for size in prepack.params[-1].shape]
    return {
        "module": tvm.ir.save_json(IRModule(module)),
        "trace": json.dumps(schedule.trace.as_json(), default=_plain, separators=(",", ":")),
        "packed": packed,
    }


def _plain(value: Any) -> Any:
    """Return TVM's containers as Python's."""
    if hasattr(value, "items"):
        return dict(value.items())
    try:
        return list(value)
    except TypeError:
        return str(value)
