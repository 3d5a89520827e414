"""An ONNX file and a target to one shared library, with a record of every kernel in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from tvm_mobilenet._tvm import IRModule, StringImm, is_tensor_type, relax, tvm
from tvm_mobilenet.errors import CompileError, TvmMobilenetError, error_context
from tvm_mobilenet.frontend.dataflow import Dataflow, static_shape
from tvm_mobilenet.frontend.importer import import_onnx
from tvm_mobilenet.frontend.passes.islands import float_islands, is_integer
from tvm_mobilenet.frontend.pipeline import canonicalize
from tvm_mobilenet.onnx_file import read_exported
from tvm_mobilenet.precision import Accumulate, Precision
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.records import FloatIsland, LayerRecord, TensorInfo
from tvm_mobilenet.schedule.dispatch import schedule_rest, select_for
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.schedule.fusion import fuse_named
from tvm_mobilenet.schedule.mixed import own_memory_on_cpu
from tvm_mobilenet.schedule.select import KernelCall, PlanSource, Selection
from tvm_mobilenet.toolchain import make_fcompile

if TYPE_CHECKING:
    from tvm_mobilenet.targets import TargetSpec

__all__ = ["CompiledLibrary", "ScheduledModule", "compile_onnx", "schedule_onnx", "vm_pipeline"]

logger = logging.getLogger(__name__)

DESCRIPTION_FUNCTION = "description"
"""The Relax function of a library that returns its description as JSON."""


@dataclass(frozen=True)
class ScheduledModule:
    """A model as Relax and scheduled TIR, ready to be built."""

    mod: IRModule
    layers: tuple[LayerRecord, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    accumulate: Accumulate | None = None
    """Of a float model: the type of its sums."""
    float_islands: tuple[FloatIsland, ...] = ()
    """What an int8 model computes in float32."""


@dataclass(frozen=True)
class CompiledLibrary:
    """A library on disk and what is in it."""

    library_path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerRecord, ...]
    """Kernel calls in the order of execution."""
    compile_seconds: float
    """From reading the ONNX file to the linked library."""


def compile_onnx(
    onnx_path: Path | str,
    target: TargetSpec,
    library_path: Path | str,
    *,
    description: Callable[[ScheduledModule], str] | None = None,
    recorded: PlanSource | None = None,
    compiler: str | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
) -> CompiledLibrary:
    """Compile an ONNX file with fixed shapes into a library that `tvm.runtime` alone can load.

    The library's function `main` takes the inputs in order and returns the output, or a tuple of
    them; `description` returns the text that the argument of that name made. Weights are inside,
    packed for the kernels. Equal inputs give equal bytes.

    Args:
        onnx_path: the model, of fixed shapes.
        target: what to compile for.
        library_path: the `.so` to write.
        description: makes the text that the library carries about itself.
        recorded: knows plans that a search found; None for computed ones alone.
        compiler: the C compiler to link with, in place of the target's own choice.
        precision: the types of a float model; `choose_precision` knows what a target can do.
        progress: told of every stage.

    Raises:
        OnnxFileError: the file is damaged or its shapes are not fixed.
        UnsupportedOpError: it holds an operator that cannot be handled.
        CompileError: code generation or linking failed.
    """
    progress = progress or NoProgress()
    started = time.perf_counter()
    library_path = Path(library_path)
    with error_context(stage="compile", target=target.name):
        progress.start(f"compiling for {target.name}", 4)
        scheduled = schedule_onnx(onnx_path, target, recorded, precision)
        progress.advance(1, "generating code")
        mod = scheduled.mod
        if description is not None:
            mod = _with_description(mod, description(scheduled))
        executable = _build(mod, target)
        progress.advance(2, "linking")
        executable.export_library(str(library_path), fcompile=make_fcompile(target, compiler))
        progress.advance(1)
        seconds = time.perf_counter() - started
        progress.done(f"{len(scheduled.layers)} kernels in {seconds:.1f} s")
    return CompiledLibrary(
        library_path, scheduled.inputs, scheduled.outputs, scheduled.layers, seconds
    )


def schedule_onnx(
    onnx_path: Path | str,
    target: TargetSpec,
    recorded: PlanSource | None = None,
    precision: Precision | None = None,
) -> ScheduledModule:
    """Import an ONNX file, bring it into NHWC, and give every kernel its schedule."""
    exported = read_exported(onnx_path)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(onnx_path)), data_prop=True)
    precision = precision or Precision()
    canonical = canonicalize(import_onnx(model), precision.dtype)
    selection = select_for(canonical, target, recorded, precision.accumulate)
    try:
        mod = _lower_rest(selection.mod, target)
        mod = schedule_rest(mod, set(selection.kernels), target)
    except TvmMobilenetError:
        raise
    except Exception as err:
        raise CompileError(f"scheduling {Path(onnx_path).name} failed: {_last_line(err)}") from err
    layers = _layers(mod, selection, model.graph)
    is_quantized = is_integer(canonical)
    return ScheduledModule(
        mod,
        layers,
        exported.inputs,
        exported.outputs,
        dtype="int8" if is_quantized else precision.dtype,
        accumulate=None if is_quantized else precision.accumulate,
        float_islands=float_islands(canonical),
    )


def _lower_rest(mod: IRModule, target: TargetSpec) -> IRModule:
    """Turn what no kernel family took into TIR, neighbours fused."""
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        tvm.transform.module_pass(lambda m, _: fuse_named(m), opt_level=0),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        # A reshape in memory order is a view, not a kernel.
        relax.transform.RewriteDataflowReshape(),
    ]
    with target.tvm_target():
        return tvm.transform.Sequential(passes)(mod)


def vm_pipeline() -> Any:
    """Return the passes from a module of kernel calls to what the virtual machine runs."""
    return tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            own_memory_on_cpu(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def _build(mod: IRModule, target: TargetSpec) -> Any:
    try:
        with lowering():
            return tvm.compile(mod, target=target.tvm_target(), relax_pipeline=vm_pipeline())
    except Exception as err:
        raise CompileError(f"code generation failed: {_last_line(err)}") from err


def _last_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[-1] if lines else type(err).__name__)[:400]


def _with_description(mod: IRModule, text: str) -> IRModule:
    builder = relax.BlockBuilder()
    with builder.function(DESCRIPTION_FUNCTION, []):
        builder.emit_func_output(StringImm(text))
    result = IRModule(dict(mod.functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)
    result[DESCRIPTION_FUNCTION] = builder.get()[DESCRIPTION_FUNCTION]
    return result


# -- what is in the library ------------------------------------------------------------------


def _layers(mod: IRModule, selection: Selection, graph: onnx.GraphProto) -> tuple[LayerRecord, ...]:
    """Describe every kernel call of `main`, in order."""
    flow = Dataflow(mod)
    shapes = _onnx_shapes(graph)
    calls = [
        binding
        for binding in flow.bindings
        if isinstance(binding.value, relax.Call)
        and getattr(binding.value.op, "name", "") == "relax.call_tir"
    ]
    output_names = {}
    for expr, output in zip(flow.outputs(), graph.output, strict=True):
        output_names[expr] = output.name
    names = [output_names.get(call.var, call.var.name) for call in calls]
    tensors = [name if name in shapes else None for name in names]
    nodes = _fused_nodes(graph, [tensor for tensor in tensors if tensor])
    layers = []
    layouts: dict[Any, str] = {}
    for index, (binding, tensor) in enumerate(zip(calls, tensors, strict=True)):
        symbol = binding.value.args[0].name_hint
        kernel = selection.kernels.get(symbol)
        layout = _layout(binding, kernel, shapes.get(tensor or ""), layouts)
        if layout != "any":
            layouts[binding.var] = layout
        layers.append(
            LayerRecord(
                index=index,
                kernel=symbol,
                family=kernel.family if kernel else "fallback",
                tensor=tensor,
                onnx_nodes=nodes.get(tensor, ()) if tensor else (),
                shape=_shape(binding.var),
                layout=layout,
                macs=kernel.workload.macs if kernel else 0,
                bytes=kernel.workload.bytes if kernel else _moved_bytes(binding),
                origin=kernel.origin if kernel else "fallback",
                schedule=kernel.schedule if kernel else {},
            )
        )
    return tuple(layers)


def _shape(var: Any) -> tuple[int, ...]:
    return static_shape(var) if is_tensor_type(var.ty) else ()


def _moved_bytes(binding: Any) -> int:
    """Return the bytes of the arguments and the result of a call."""
    total = 0
    for tensor in [*binding.value.args[1].fields, binding.var]:
        if is_tensor_type(tensor.ty):
            size = int(np.dtype(str(tensor.ty.dtype)).itemsize)
            for extent in static_shape(tensor):
                size *= extent
            total += size
    return total


def _layout(
    binding: Any,
    kernel: KernelCall | None,
    onnx_shape: tuple[int, ...] | None,
    known: dict[Any, str],
) -> str:
    """Return the layout of a result: kernels of ours know theirs, for others the shape tells.

    Where it does not, because all extents are equal, the call is taken to keep its input's.
    """
    shape = _shape(binding.var)
    if len(shape) != 4:
        return "any"
    if kernel is not None:
        return getattr(kernel.workload, "output_layout", "NHWC")
    if onnx_shape is not None and onnx_shape != shape:
        return "NHWC"
    is_telling = tuple(shape[i] for i in (0, 2, 3, 1)) != shape
    if onnx_shape == shape and is_telling:
        return "NCHW"
    layouts = [known[arg] for arg in binding.value.args[1].fields if arg in known]
    if layouts:
        return layouts[0]
    return "NCHW" if onnx_shape == shape else "NHWC"


def _onnx_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a node computes, where it can be inferred."""
    shapes: dict[str, tuple[int, ...]] = {
        name: () for node in graph.node for name in node.output if name
    }
    for value in [*graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(int(dim.dim_value) for dim in dims)
    return shapes


def _fused_nodes(graph: onnx.GraphProto, tensors: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return, for each kernel's tensor, the nodes between it and the kernels before it."""
    producers = {name: node for node in graph.node for name in node.output if name}
    boundaries = set(tensors)
    result = {}
    for tensor in tensors:
        names: list[str] = []
        pending = [tensor]
        seen = set()
        while pending:
            current = pending.pop()
            node = producers.get(current)
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            names.append(node.name or node.output[0])
            pending.extend(name for name in node.input if name not in boundaries)
        result[tensor] = tuple(reversed(names))
    return result
