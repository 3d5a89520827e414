"""The last node of an exported detector: an ONNX function from the heads' outputs to detections.

A function is a node whose meaning is in the file, spelled in standard operators: ONNX Runtime
computes those, our compiler knows the node itself and has one kernel for it. The outputs have a
fixed size, which `NonMaxSuppression` alone does not have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet.detection.suppression import (
    CENTRE_SCALE,
    MAX_SIZE_LOGARITHM,
    SIZE_SCALE,
    Suppression,
)

__all__ = [
    "DOMAIN",
    "OPERATOR",
    "OUTPUTS",
    "attach_detections",
    "has_detections",
    "network_outputs",
    "without_detections",
]

DOMAIN = "tvm_mobilenet"
OPERATOR = "SsdDetections"
OUTPUTS = ("boxes", "scores", "classes", "count")
"""Of the exported graph: boxes (1, N, 4) f32 left, top, right, bottom as shares of the sides,
scores (1, N) f32, classes (1, N) i32 counted from 0 without the background, count (1,) i32. Beyond
`count`, boxes and scores are 0 and classes -1."""
_DEFAULTS = "default_boxes"
_VERSION = 1


def attach_detections(
    model: onnx.ModelProto, defaults: npt.NDArray[np.float32], suppression: Suppression
) -> None:
    """Put the function behind a graph whose outputs are offsets and logits, in their place.

    Shapes:
        offsets (1, boxes, 4) f32, logits (1, boxes, 1 + classes) f32, defaults (boxes, 4) f32
    """
    graph = model.graph
    inputs = [value.name for value in graph.output]
    node = helper.make_node(
        OPERATOR,
        [*inputs, _DEFAULTS],
        list(OUTPUTS),
        name="detections",
        domain=DOMAIN,
        score_threshold=[suppression.score_threshold],
        iou_threshold=[suppression.iou_threshold],
        detections=[suppression.detections],
    )
    graph.initializer.append(numpy_helper.from_array(defaults, _DEFAULTS))
    graph.node.append(node)
    graph.value_info.extend(graph.output)
    del graph.output[:]
    count = suppression.detections
    for name, dtype, shape in zip(
        OUTPUTS,
        (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT32),
        ((1, count, 4), (1, count), (1, count), (1,)),
        strict=True,
    ):
        graph.output.append(helper.make_tensor_value_info(name, dtype, shape))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    model.functions.append(_function(opset))
    model.opset_import.append(helper.make_opsetid(DOMAIN, _VERSION))


def has_detections(model: onnx.ModelProto) -> bool:
    """Tell whether a graph ends in the function."""
    return any(node.op_type == OPERATOR and node.domain == DOMAIN for node in model.graph.node)


def network_outputs(model: onnx.ModelProto) -> list[str]:
    """Return the names of a graph's outputs; of a detector those of its heads."""
    for node in model.graph.node:
        if node.op_type == OPERATOR and node.domain == DOMAIN:
            return list(node.input[:2])
    return [value.name for value in model.graph.output]


def without_detections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a detector that ends at its heads: offsets and logits are its outputs again."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    (node,) = (each for each in graph.node if each.op_type == OPERATOR)
    heads = {value.name: value for value in graph.value_info}
    del graph.output[:]
    graph.output.extend(heads[name] for name in node.input[:2])
    graph.node.remove(node)
    (defaults,) = (tensor for tensor in graph.initializer if tensor.name == node.input[2])
    graph.initializer.remove(defaults)
    del cut.functions[:]
    (domain,) = (entry for entry in cut.opset_import if entry.domain == DOMAIN)
    cut.opset_import.remove(domain)
    return cut


def _function(opset: int) -> onnx.FunctionProto:
    """Return the function's meaning in ONNX's own operators."""
    text = _TEXT.format(
        domain=DOMAIN,
        opset=opset,
        version=_VERSION,
        name=OPERATOR,
        centre=CENTRE_SCALE,
        size=SIZE_SCALE,
        largest=repr(float(np.float32(MAX_SIZE_LOGARITHM))),
    )
    return onnx.parser.parse_function(text)


_TEXT = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <score_threshold, iou_threshold, detections> (offsets, logits, defaults)
  => (boxes, scores, classes, count)
{{
  score_limit = Constant <value_floats: floats = @score_threshold> ()
  iou_limit = Constant <value_floats: floats = @iou_threshold> ()
  kept = Constant <value_ints: ints = @detections> ()
  zero = Constant <value_ints: ints = [0]> ()
  one = Constant <value_ints: ints = [1]> ()
  two = Constant <value_ints: ints = [2]> ()
  three = Constant <value_ints: ints = [3]> ()
  four = Constant <value_ints: ints = [4]> ()
  all = Constant <value_ints: ints = [2147483647]> ()
  none = Constant <value_float: float = 0.0> ()
  whole = Constant <value_float: float = 1.0> ()
  half = Constant <value_float: float = 0.5> ()
  centre_scale = Constant <value_float: float = {centre}> ()
  size_scale = Constant <value_float: float = {size}> ()
  largest = Constant <value_float: float = {largest}> ()

  shift = Slice (offsets, zero, two, two)
  growth = Slice (offsets, two, four, two)
  default_centre = Slice (defaults, zero, two, one)
  default_size = Slice (defaults, two, four, one)
  scaled_shift = Mul (shift, centre_scale)
  moved = Mul (scaled_shift, default_size)
  centre = Add (moved, default_centre)
  scaled_growth = Mul (growth, size_scale)
  bounded_growth = Min (scaled_growth, largest)
  factor = Exp (bounded_growth)
  size = Mul (factor, default_size)
  reach = Mul (size, half)
  low = Sub (centre, reach)
  high = Add (centre, reach)
  corners = Concat <axis = 2> (low, high)
  all_boxes = Clip (corners, none, whole)

  probabilities = Softmax <axis = 2> (logits)
  of_classes = Slice (probabilities, one, all, two)
  all_scores = Transpose <perm = [0, 2, 1]> (of_classes)
  selected = NonMaxSuppression (all_boxes, all_scores, kept, iou_limit, score_limit)

  picked = GatherND (all_scores, selected)
  missing_scores = ConstantOfShape <value = float[1] {{-1.0}}> (kept)
  padded_scores = Concat <axis = 0> (picked, missing_scores)
  best, order = TopK <axis = 0, largest = 1, sorted = 1> (padded_scores, kept)
  positive = Max (best, none)
  scores = Unsqueeze (positive, zero)

  class_column = Slice (selected, one, two, one)
  selected_classes = Squeeze (class_column, one)
  missing_classes = ConstantOfShape <value = int64[1] {{-1}}> (kept)
  padded_classes = Concat <axis = 0> (selected_classes, missing_classes)
  best_classes = Gather <axis = 0> (padded_classes, order)
  narrow_classes = Cast <to = 6> (best_classes)
  classes = Unsqueeze (narrow_classes, zero)

  box_column = Slice (selected, two, three, one)
  selected_places = Squeeze (box_column, one)
  of_picture = Squeeze (all_boxes, zero)
  selected_boxes = Gather <axis = 0> (of_picture, selected_places)
  missing_shape = Concat <axis = 0> (kept, four)
  missing_boxes = ConstantOfShape <value = float[1] {{0.0}}> (missing_shape)
  padded_boxes = Concat <axis = 0> (selected_boxes, missing_boxes)
  best_boxes = Gather <axis = 0> (padded_boxes, order)
  boxes = Unsqueeze (best_boxes, zero)

  is_real = Greater (best, none)
  real = Cast <to = 6> (is_real)
  count = ReduceSum <keepdims = 1> (real, zero)
}}
"""
