"""Kernels of segmentation with what they should compute: for this machine, and emulated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet.schedule.joined import plan_joined, write_joined
from tvm_mobilenet.schedule.matmul import pack_matmul
from tvm_mobilenet.schedule.resize import plan_resize, resize_tables, write_resize
from tvm_mobilenet.schedule.taps import pack_taps, plan_taps, write_taps
from tvm_mobilenet.schedule.workload import (
    ConvWorkload,
    Epilogue,
    JoinedWorkload,
    MatmulWorkload,
    ResizeWorkload,
    TapsWorkload,
)
from tvm_mobilenet.targets import Cpu

RELU6 = Epilogue(bias=True, low=0.0, high=6.0)


@dataclass(frozen=True)
class Case:
    """A kernel, its arguments and its output."""

    function: Any
    arguments: list[np.ndarray]
    expected: np.ndarray


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype="float32")


def onnx_runtime(
    op: str, x: np.ndarray, constants: dict[str, np.ndarray], **attributes: Any
) -> np.ndarray:
    """Compute one operator of NCHW `x` in ONNX Runtime; returned as NHWC."""
    names = [name if array.size else "" for name, array in constants.items()]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items() if a.size],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.asarray(y.transpose(0, 2, 3, 1))


def resize_case(workload: ResizeWorkload, cpu: Cpu, rng: np.random.Generator) -> Case:
    w = workload
    x = normal(rng, w.batch, w.height, w.width, w.channels)
    sizes = np.array([w.batch, w.channels, w.out_height, w.out_width], np.int64)
    empty = np.empty(0, np.float32)
    expected = onnx_runtime(
        "Resize",
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        {"roi": empty, "scales": empty, "sizes": sizes},
        mode="linear",
        coordinate_transformation_mode=w.mode,
    )
    if w.output_layout == "NCHW":
        expected = np.ascontiguousarray(expected.transpose(0, 3, 1, 2))
    return Case(write_resize(w, plan_resize(w, cpu)), [x, *resize_tables(w)], expected)


def taps_case(conv: ConvWorkload, cpu: Cpu, rng: np.random.Generator) -> Case:
    workload = TapsWorkload(conv=conv)
    plan = plan_taps(workload, cpu)
    x = normal(rng, conv.batch, conv.height, conv.width, conv.in_channels)
    w = normal(rng, conv.out_channels, conv.in_channels, *conv.kernel)
    bias = normal(rng, conv.out_channels)
    expected = onnx_runtime(
        "Conv",
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        {"w": w, "b": bias},
        dilations=conv.dilation,
        pads=conv.padding,
    )
    arguments = [x, pack_taps(w, plan), bias]
    if conv.epilogue.residual:
        arguments.append(normal(rng, *expected.shape))
        expected = expected + arguments[-1]
    return Case(write_taps(workload, plan), arguments, np.clip(expected, 0, 6))


def joined_case(
    batch: int,
    side: int,
    parts: tuple[tuple[int, bool], ...],
    columns: int,
    cpu: Cpu,
    rng: np.random.Generator,
) -> Case:
    depth = sum(channels for channels, _ in parts)
    product = MatmulWorkload(rows=batch * side * side, depth=depth, columns=columns, epilogue=RELU6)
    workload = JoinedWorkload(batch=batch, parts=parts, pointwise=product)
    plan = plan_joined(workload, cpu)
    shapes = [(batch, 1, 1, c) if is_pixel else (batch, side, side, c) for c, is_pixel in parts]
    xs = [normal(rng, *shape) for shape in shapes]
    w, bias = normal(rng, depth, columns), normal(rng, columns)
    spread = [np.broadcast_to(x, (batch, side, side, x.shape[3])) for x in xs]
    expected = np.clip(np.concatenate(spread, axis=3) @ w + bias, 0, 6)
    function = write_joined(workload, plan, x_shapes=shapes, y_shape=expected.shape)
    return Case(function, [*xs, pack_matmul(w, plan.pointwise), bias], expected)


def atrous(
    side: tuple[int, int],
    channels: tuple[int, int],
    rate: int,
    *,
    batch: int = 1,
    kernel: int = 3,
    residual: bool = False,
) -> ConvWorkload:
    return ConvWorkload(
        batch=batch,
        height=side[0],
        width=side[1],
        in_channels=channels[0],
        out_channels=channels[1],
        kernel=(kernel, kernel),
        dilation=(rate, rate),
        padding=(kernel // 2 * rate,) * 4,
        epilogue=Epilogue(bias=True, residual=residual, low=0.0, high=6.0),
    )


def resize(
    before: tuple[int, int],
    after: tuple[int, int],
    channels: int,
    mode: Any = "half_pixel",
    layout: Any = "NCHW",
    batch: int = 1,
) -> ResizeWorkload:
    return ResizeWorkload(
        batch=batch,
        height=before[0],
        width=before[1],
        channels=channels,
        out_height=after[0],
        out_width=after[1],
        mode=mode,
        output_layout=layout,
    )


RESIZES = [
    resize((5, 6), (40, 48), 21),
    resize((4, 5), (49, 65), 3, "align_corners"),
    resize((3, 7), (10, 17), 21),
    resize((6, 6), (12, 12), 40, layout="NHWC"),
    resize((5, 7), (9, 20), 21, "align_corners", "NHWC", batch=2),
    resize((9, 8), (4, 3), 8, "pytorch_half_pixel", "NHWC"),
    resize((4, 4), (12, 20), 5, "asymmetric", batch=2),
]
TAPS = [
    atrous((7, 7), (16, 40), 2),
    atrous((9, 5), (12, 24), 4, batch=2),
    atrous((11, 13), (8, 21), 3, kernel=5, residual=True),
    atrous((6, 20), (24, 64), 1),
]
JOINED = [(1, 6, ((16, False), (24, False), (8, True)), 21), (2, 5, ((13, False), (40, True)), 48)]
