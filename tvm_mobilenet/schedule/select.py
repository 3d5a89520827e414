"""Choose a kernel for each convolution, dense layer and global pool of a module in NHWC.

What follows a convolution goes into its kernel as far as `tvm_mobilenet.schedule.chain` can follow
it, and so does the gate of squeeze-and-excite that scales its input.
Weights are packed here, once, at compile time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import ml_dtypes
import numpy as np

from tvm_mobilenet._tvm import IRModule, PrimFunc, relax
from tvm_mobilenet.frontend.dataflow import (
    Binding,
    Dataflow,
    constant_array,
    is_call,
    static_shape,
)
from tvm_mobilenet.frontend.detections import DetectionsCall, read_detections
from tvm_mobilenet.schedule.anchors import (
    conv_workload,
    gate_of,
    pair_of,
    parts_of,
    pointwise_product,
    read_input,
    reduced_axes,
    resize_workload,
    unserved_convolution,
)
from tvm_mobilenet.schedule.bfloat16_matmul import (
    can_multiply_pairs,
    pack_bfloat_matmul,
    plan_bfloat_matmul,
    write_bfloat_matmul,
)
from tvm_mobilenet.schedule.cascade import pack_cascade, plan_cascade, write_cascade
from tvm_mobilenet.schedule.chain import Chain, ChainFollower
from tvm_mobilenet.schedule.convolution import pack_conv, plan_conv, write_conv
from tvm_mobilenet.schedule.depthwise import pack_depthwise, plan_depthwise, write_depthwise
from tvm_mobilenet.schedule.detections import DetectionsWorkload, plan_detections, write_detections
from tvm_mobilenet.schedule.emit import stored_as
from tvm_mobilenet.schedule.gated import plan_gated, write_gated
from tvm_mobilenet.schedule.integer.select import select_integer
from tvm_mobilenet.schedule.joined import plan_joined, write_joined
from tvm_mobilenet.schedule.kernel_calls import KernelCalls
from tvm_mobilenet.schedule.matmul import pack_matmul, plan_matmul, write_matmul
from tvm_mobilenet.schedule.mixed import CPU_PREFIX
from tvm_mobilenet.schedule.partition import can_cascade, stages_to_fuse
from tvm_mobilenet.schedule.pool import plan_pool, write_pool
from tvm_mobilenet.schedule.resize import plan_resize, resize_tables, write_resize
from tvm_mobilenet.schedule.runs import find_run
from tvm_mobilenet.schedule.separable import ApartPlan, plan_separable, write_separable
from tvm_mobilenet.schedule.taps import is_by_taps, pack_taps, plan_taps, write_taps
from tvm_mobilenet.schedule.workload import (
    CascadeWorkload,
    ConvWorkload,
    Epilogue,
    GatedWorkload,
    JoinedWorkload,
    MatmulWorkload,
    PlanSource,
    PoolWorkload,
    SeparableWorkload,
    TapsWorkload,
    TunableWorkload,
    Workload,
)

if TYPE_CHECKING:
    from tvm_mobilenet.precision import Accumulate
    from tvm_mobilenet.targets import Cpu

__all__ = ["KernelCall", "PlanSource", "Selection", "select_beside_gpu", "select_kernels"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelCall:
    """One kernel of ours in the module: what it computes and how."""

    symbol: str
    family: str
    workload: Workload
    """Of detections, a `DetectionsWorkload`."""
    plan: Any
    origin: Literal["computed", "tuned"] = "computed"

    @property
    def schedule(self) -> dict[str, Any]:
        """Return the plan's parameters as JSON-ready values."""
        return asdict(self.plan)


@dataclass
class Selection:
    """A module whose convolutions are calls of written kernels, and what those are."""

    mod: IRModule
    kernels: dict[str, KernelCall] = field(default_factory=dict)
    """By symbol."""


def select_kernels(
    mod: IRModule,
    cpu: Cpu,
    recorded: PlanSource | None = None,
    accumulate: Accumulate = "float32",
) -> Selection:
    """Replace each convolution, dense layer and global pool by a call of a kernel written for it.

    Rewrite:
        minimum(maximum(add(conv2d(x, w), bias), low), high)
            ->  call_tir(kernel, (x, packed, bias))
    Shapes:
        x (N, H, W, C), w (O, kH, kW, I/g), result (N, H, W, O), of f32, f16 or bf16.

    A kernel computes in the type of its sums, which for what is stored in float16 is `accumulate`,
    and converts what it loads and stores where that is another.

    An operator that no family serves is left as it is, for the fallback, and logged with the
    reason. Where `recorded` has no plan, one is computed.
    """
    mod, integer = select_integer(mod, cpu, recorded)
    selector = _Selector(mod, cpu, recorded, accumulate)
    for binding in selector.flow.bindings:
        selector.visit(binding)
    kernels = {
        k.symbol: KernelCall(k.symbol, k.family, k.workload, k.plan, k.origin) for k in integer
    }
    return Selection(selector.calls.module(), kernels | selector.kernels)


def select_beside_gpu(mod: IRModule, cpu: Cpu, operators: Sequence[str]) -> Selection:
    """Choose kernels for what a processor computes beside a GPU: `dense` and `pool`, if named.

    They hold their weights themselves, and their plans are computed. The rest is left as it is.
    """
    anchors = [
        anchor for name, anchor in (("dense", "matmul"), ("pool", "mean")) if name in operators
    ]
    selector = _Selector(mod, cpu, None, prefix=CPU_PREFIX, holds_constants=True)
    for binding in selector.flow.bindings:
        if any(is_call(binding.value, anchor) for anchor in anchors):
            selector.visit(binding)
    return Selection(selector.calls.module(), selector.kernels)


class _Selector:
    def __init__(
        self,
        mod: IRModule,
        cpu: Cpu,
        recorded: PlanSource | None,
        accumulate: Accumulate = "float32",
        **calls: Any,
    ) -> None:
        self.flow = Dataflow(mod)
        self._cpu = cpu
        self._accumulate = accumulate
        self._stored = "float32"
        """Of the tensors of the kernel in hand."""
        self._recorded = recorded or (lambda _family, _workload: None)
        self._apart: dict[Any, Any] = {}
        self._tuned: set[tuple[Workload, Any]] = set()
        self.users = self.flow.users()
        self.chains = ChainFollower(self.users)
        self.definitions = self.flow.definitions()
        self.calls = KernelCalls(self.flow, **calls)
        self.kernels: dict[str, KernelCall] = {}

    def visit(self, binding: Binding) -> None:
        """Choose a kernel for one binding if it is an anchor."""
        if self.calls.has_taken(binding.var):
            return
        if is_call(binding.value, "nn.conv2d", "matmul", "mean", "image.resize2d"):
            self._stored = str(binding.var.ty.dtype)
        if is_call(binding.value, "nn.conv2d"):
            self._convolution(binding)
        elif is_call(binding.value, "matmul"):
            self._dense(binding)
        elif is_call(binding.value, "mean"):
            self._pool(binding)
        elif (detections := read_detections(binding.value)) is not None:
            self._detections(binding, detections)
        elif is_call(binding.value, "image.resize2d"):
            self._resize(binding)

    @property
    def _computed(self) -> str:
        """The type that the kernel in hand computes in."""
        return self._accumulate if self._stored == "float16" else "float32"

    @property
    def cpu(self) -> Cpu:
        """The processor that the kernel in hand is planned for."""
        if self._stored == self._computed:
            return self._cpu
        # What converts as it loads is written for LLVM: assembly reads memory by address.
        return self._cpu.model_copy(update={"isa": "generic"})

    def _plan(
        self, family: str, workload: TunableWorkload, compute: Any, anchor: Any = None
    ) -> Any:
        """Return the plan recorded for a workload, or for the pair that it is half of."""
        is_known = self._stored == self._computed
        plan = self._apart.get(anchor) or (self._recorded(family, workload) if is_known else None)
        if plan is None:
            return compute(workload, self.cpu)
        self._tuned.add((workload, plan))
        return plan

    # -- anchors ----------------------------------------------------------------------------

    def _convolution(self, binding: Binding) -> None:
        call = binding.value
        weight = constant_array(call.args[1])
        reason = unserved_convolution(call, weight, _FLOATS)
        if weight is None or reason is not None:
            logger.info("%s: no kernel family: %s", binding.var.name, reason)
            return
        chain = self.chains.follow(binding.var)
        weight = weight.astype("float32") * np.float32(chain.factor)
        x, layout = read_input(call.args[0], self.definitions)
        shape = static_shape(call.args[0])
        workload = conv_workload(binding, weight, layout, chain.epilogue)
        workload = replace(workload, dtype=self._computed)
        if self._stored == "float32" and can_cascade(self.cpu) and self._cascade(binding):
            return
        out_shape = static_shape(binding.var)
        if workload.is_depthwise:
            if layout == "NCHW":
                x, workload = call.args[0], replace(workload, input_layout="NHWC")
            if self._separable(chain, workload, x, weight):
                return
            plan = self._plan("depthwise", workload, plan_depthwise, binding.var)
            packed = pack_depthwise(weight.transpose(0, 3, 1, 2), plan)
            self._place(
                chain,
                "depthwise",
                workload,
                plan,
                [x, packed],
                lambda: write_depthwise(workload, plan),
            )
        elif workload.is_pointwise and (
            self._pairs(chain, "pointwise", pointwise_product(workload), call.args[0], weight)
            or self._gated(chain, workload, call.args[0], weight)
            or self._side_by_side(chain, workload, call.args[0], weight)
        ):
            return
        elif workload.is_pointwise:
            product = pointwise_product(workload)
            matmul_plan = self._plan("pointwise", product, plan_matmul, binding.var)
            packed = pack_matmul(weight.reshape(weight.shape[0], -1).T, matmul_plan)
            self._place(
                chain,
                "pointwise",
                product,
                matmul_plan,
                [x, packed],
                lambda: write_matmul(product, matmul_plan, x_shape=shape, y_shape=out_shape),
            )
        elif self._stored == self._computed and is_by_taps(workload, self.cpu):
            # Else the sums, which wait in the output, would be rounded tap by tap.
            by_taps = TapsWorkload(conv=workload)
            taps_plan = plan_taps(by_taps, self.cpu)
            self._place(
                chain,
                "taps",
                by_taps,
                taps_plan,
                [x, pack_taps(weight.transpose(0, 3, 1, 2), taps_plan)],
                lambda: write_taps(by_taps, taps_plan),
            )
        else:
            conv_plan = self._plan("conv", workload, plan_conv)
            packed = pack_conv(weight.transpose(0, 3, 1, 2), conv_plan)
            self._place(
                chain,
                "conv",
                workload,
                conv_plan,
                [x, packed],
                lambda: write_conv(workload, conv_plan),
            )

    def _pairs(
        self, chain: Chain, family: str, product: MatmulWorkload, x: Any, weight: np.ndarray
    ) -> bool:
        """Multiply bfloat16 two by two, where there is an instruction for it."""
        if self._stored != "bfloat16" or not can_multiply_pairs(product, self._cpu):
            return False
        plan = plan_bfloat_matmul(product, self._cpu)
        matrix = weight.reshape(product.columns, -1).T if family == "pointwise" else weight
        x_shape, y_shape = static_shape(x), static_shape(chain.last)
        self._place(
            chain,
            family,
            product,
            plan,
            [x, pack_bfloat_matmul(matrix, plan)],
            lambda: write_bfloat_matmul(product, plan, x_shape=x_shape, y_shape=y_shape),
        )
        return True

    def _cascade(self, binding: Binding) -> bool:
        """Fuse a run of convolutions, each the only reader of the one before, where it pays."""
        run = find_run(binding, self.chains, self.definitions, self.users)
        length = stages_to_fuse([stage.workload for stage in run], self.cpu)
        fused = run[:length]
        kinds = [(stage.workload.is_depthwise, stage.workload.is_pointwise) for stage in fused]
        if length < 2 or kinds == [(True, False), (False, True)]:
            return False
        workload = CascadeWorkload(stages=tuple(stage.workload for stage in fused))
        plan = self._plan("cascade", workload, plan_cascade)
        packed = pack_cascade([stage.weight for stage in fused], workload, plan)
        inputs: list[Any] = [fused[0].x]
        for stage, weights in zip(fused, packed, strict=True):
            inputs.append(weights)
            if stage is not fused[-1] and stage.chain.bias is not None:
                inputs.append(stage.chain.bias)
        chain = fused[-1].chain
        chain.members = [member for stage in fused for member in stage.chain.members]
        self._place(chain, "cascade", workload, plan, inputs, lambda: write_cascade(workload, plan))
        return True

    def _gated(self, chain: Chain, conv: ConvWorkload, x: Any, weight: np.ndarray) -> bool:
        """Take over the gate of squeeze-and-excite that only this convolution's input is from."""
        found = gate_of(x, self.definitions, self.users)
        if found is None:
            return False
        image, gate = found
        shape, gate_shape = static_shape(image), static_shape(gate)
        workload = GatedWorkload(batch=conv.batch, pointwise=pointwise_product(conv))
        plan = self._plan("gated", workload, plan_gated)
        matrix = weight.reshape(conv.out_channels, -1).T
        out_shape = static_shape(chain.last)
        self._place(
            chain,
            "gated",
            workload,
            plan,
            [image, gate, pack_matmul(matrix, plan.pointwise)],
            lambda: write_gated(
                workload, plan, x_shape=shape, gate_shape=gate_shape, y_shape=out_shape
            ),
        )
        return True

    def _side_by_side(self, chain: Chain, conv: ConvWorkload, x: Any, weight: np.ndarray) -> bool:
        """Take over the concatenation that only this convolution reads."""
        parts = parts_of(x, self.definitions, self.users)
        if parts is None:
            return False
        workload = JoinedWorkload(
            batch=conv.batch,
            parts=tuple((static_shape(part)[3], is_pixel) for part, is_pixel in parts),
            pointwise=pointwise_product(conv),
        )
        plan = plan_joined(workload, self.cpu)
        tensors = [part for part, _ in parts]
        matrix = weight.reshape(conv.out_channels, -1).T
        out_shape = static_shape(chain.last)
        self._place(
            chain,
            "joined",
            workload,
            plan,
            [*tensors, pack_matmul(matrix, plan.pointwise)],
            lambda: write_joined(
                workload, plan, x_shapes=list(map(static_shape, tensors)), y_shape=out_shape
            ),
        )
        return True

    def _separable(self, chain: Chain, workload: ConvWorkload, x: Any, weight: np.ndarray) -> bool:
        """Fuse a depthwise convolution with the pointwise one that alone reads it, if it pays."""
        readers = self.users.get(chain.last, [])
        if chain.residual is not None or len(readers) != 1 or readers[0].var is None:
            return False
        if self._stored == "bfloat16":
            return False  # the product alone has an instruction of its own
        reader = readers[0]
        if not is_call(reader.value, "nn.conv2d") or not reader.value.args[0].same_as(chain.last):
            return False
        pointwise_weight = constant_array(reader.value.args[1])
        if pointwise_weight is None or unserved_convolution(
            reader.value, pointwise_weight, _FLOATS
        ):
            return False
        attrs = reader.value.attrs
        is_plain = pointwise_weight.shape[1:3] == (1, 1) and int(attrs.groups) == 1
        if not is_plain or pair_of(attrs.strides) != (1, 1) or any(int(p) for p in attrs.padding):
            return False
        following = self.chains.follow(reader.var)
        if following.epilogue.activation == "sigmoid":
            return False  # packed rows know none
        pointwise_weight = pointwise_weight.astype("float32") * np.float32(following.factor)
        pair = SeparableWorkload(
            depthwise=workload,
            pointwise=MatmulWorkload(
                rows=workload.batch * workload.out_height * workload.out_width,
                depth=workload.out_channels,
                columns=pointwise_weight.shape[0],
                epilogue=following.epilogue,
                dtype=workload.dtype,
            ),
        )
        plan = self._plan("separable", pair, plan_separable)
        if isinstance(plan, ApartPlan):
            self._apart[chain.members[0]] = plan.depthwise
            self._apart[reader.var] = plan.pointwise
        if plan is None or isinstance(plan, ApartPlan):
            return False
        matrix = pointwise_weight.reshape(pointwise_weight.shape[0], -1).T
        inputs = [x, pack_depthwise(weight.transpose(0, 3, 1, 2), plan.depthwise)]
        if chain.bias is not None:
            # A constant already: of the arrays, weights alone are stored in another type.
            inputs.append(relax.const(chain.bias.astype(pair.dtype)))
        inputs.append(pack_matmul(matrix, plan.pointwise))
        out_shape = static_shape(reader.var)
        following.members.extend(chain.members)
        self._place(
            following,
            "separable",
            pair,
            plan,
            inputs,
            lambda: write_separable(pair, plan, y_shape=out_shape),
        )
        return True

    def _dense(self, binding: Binding) -> None:
        weight = constant_array(binding.value.args[1])
        shape = static_shape(binding.value.args[0])
        if weight is None or weight.ndim != 2 or str(weight.dtype) not in _FLOATS or len(shape) < 2:
            logger.info("%s: no kernel family: matmul of two tensors", binding.var.name)
            return
        chain = self.chains.follow(binding.var)
        weight = weight.astype("float32") * np.float32(chain.factor)
        workload = MatmulWorkload(
            rows=int(np.prod(shape[:-1])),
            depth=shape[-1],
            columns=weight.shape[1],
            epilogue=chain.epilogue,
            dtype=self._computed,
        )
        if self._pairs(chain, "dense", workload, binding.value.args[0], weight):
            return
        plan = self._plan("dense", workload, plan_matmul)
        out_shape = static_shape(binding.var)
        self._place(
            chain,
            "dense",
            workload,
            plan,
            [binding.value.args[0], pack_matmul(weight, plan)],
            lambda: write_matmul(workload, plan, x_shape=shape, y_shape=out_shape),
        )

    def _pool(self, binding: Binding) -> None:
        call = binding.value
        shape = static_shape(call.args[0])
        axes = reduced_axes(call)
        if len(shape) != 4 or axes != [1, 2] or str(binding.var.ty.dtype) not in _FLOATS:
            logger.info("%s: no kernel family: mean over axes %s", binding.var.name, axes)
            return
        # Summed in float32, however it is stored: there are more pixels than float16 has digits.
        workload = PoolWorkload(batch=shape[0], pixels=shape[1] * shape[2], channels=shape[3])
        plan = self._plan("pool", workload, plan_pool)
        out_shape = static_shape(binding.var)
        chain = Chain(binding.var, [binding.var], Epilogue())
        self._place(
            chain,
            "pool",
            workload,
            plan,
            [call.args[0]],
            lambda: write_pool(workload, plan, x_shape=shape, y_shape=out_shape),
        )

    def _detections(self, binding: Binding, call: DetectionsCall) -> None:
        """Read the heads' outputs where they are, without joining them first."""
        self._stored = "float32"  # whatever the network before it is stored in
        offsets, logits = self._joined(call.offsets), self._joined(call.logits)
        workload = DetectionsWorkload(
            boxes=tuple(static_shape(part)[1] for part in logits),
            classes=static_shape(call.logits)[2] - 1,
            suppression=call.suppression,
        )
        if [static_shape(part)[1] for part in offsets] != list(workload.boxes):
            offsets, logits = [call.offsets], [call.logits]
            workload = replace(workload, boxes=(static_shape(call.logits)[1],))
        plan = plan_detections(workload, self.cpu)
        self._place(
            Chain(binding.var, [binding.var], Epilogue()),
            "detections",
            cast(Any, workload),
            plan,
            [*offsets, *logits, call.defaults],
            lambda: write_detections(workload, plan),
        )

    def _joined(self, x: Any) -> list[Any]:
        """Return what a tensor is joined of along its rows; itself, where it is not."""
        value = self.definitions.get(x)
        if not is_call(value, "concat") or int(value.attrs.axis) % 3 != 1:
            return [x]
        parts = value.args[0]
        parts = self.definitions.get(parts, parts)
        return list(parts.fields) if isinstance(parts, relax.Tuple) else [x]

    def _resize(self, binding: Binding) -> None:
        workload, out = resize_workload(binding, self.users)
        if workload is None:
            logger.info("%s: no kernel family: resizing that is not bilinear", binding.var.name)
            return
        plan = plan_resize(workload, self.cpu)
        self._place(
            Chain(out, [binding.var, out], Epilogue()),
            "resize",
            workload,
            plan,
            [binding.value.args[0], *resize_tables(workload)],
            lambda: write_resize(workload, plan),
        )

    # -- what goes into a kernel ------------------------------------------------------------

    def _place(
        self,
        chain: Chain,
        family: str,
        workload: Workload,
        plan: Any,
        inputs: list[Any],
        write: Callable[[], PrimFunc],
    ) -> None:
        """Put a call of the kernel where the last member of the chain was."""
        stored = ml_dtypes.bfloat16 if self._stored == "bfloat16" else np.dtype(self._stored)
        args = [
            # Tables of whole numbers stay what they are.
            arg.astype(stored) if isinstance(arg, np.ndarray) and arg.dtype.kind == "f" else arg
            for arg in inputs
        ]
        if chain.bias is not None:
            args.append(chain.bias.astype(workload.dtype))
        if chain.residual is not None:
            args.append(chain.residual)
        what = (workload, plan)
        with stored_as(None if self._stored == workload.dtype else self._stored):
            symbol = self.calls.put(family, what, args, chain.last, chain.members, write)
        if symbol is not None:
            origin: Literal["computed", "tuned"] = "tuned" if what in self._tuned else "computed"
            self.kernels[symbol] = KernelCall(symbol, family, workload, plan, origin)


_FLOATS = ("float32", "float16", "bfloat16")
