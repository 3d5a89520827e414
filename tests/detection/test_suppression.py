"""Default boxes, decoding and suppression: numpy, the exported function and the compiled kernel."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tvm_mobilenet._tvm import IRModule, tvm
from tvm_mobilenet.detection.default_boxes import default_boxes
from tvm_mobilenet.detection.onnx_function import OUTPUTS, attach_detections
from tvm_mobilenet.detection.suppression import Detections, Suppression, decode_boxes, suppress
from tvm_mobilenet.models.ssd_table import map_sizes
from tvm_mobilenet.schedule.detections import (
    DetectionsWorkload,
    plan_detections,
    write_detections,
)
from tvm_mobilenet.schedule.emit import lowering
from tvm_mobilenet.targets import load_target
from tvm_mobilenet.verify.engines import onnx_session

SIZES, PER_CELL = (4, 2, 1), (3, 6, 6)
BOXES = tuple(size * size * count for size, count in zip(SIZES, PER_CELL, strict=True))
DEFAULTS = default_boxes(SIZES, PER_CELL)
LIMITS = Suppression(score_threshold=0.02, iou_threshold=0.4, detections=20)


def test_as_many_boxes_as_published():
    # 3234 of torchvision's ssdlite320_mobilenet_v3_large, 1917 of TensorFlow's ssd_mobilenet_v1.
    assert len(default_boxes(map_sizes(320), (6,) * 6)) == 3234
    assert len(default_boxes(map_sizes(300), (3, 6, 6, 6, 6, 6))) == 1917


def test_boxes_of_a_cell_have_the_scales_and_shapes_of_the_paper():
    boxes = default_boxes(map_sizes(320), (6,) * 6)
    first, last = boxes[:6], boxes[-6:]
    np.testing.assert_allclose(first[:, :2], 0.5 / 20, rtol=1e-6)
    np.testing.assert_allclose(first[0, 2:], 0.2, rtol=1e-6)
    np.testing.assert_allclose(first[1, 2:], np.sqrt(0.2 * 0.35), rtol=1e-6)
    np.testing.assert_allclose(first[2:, 2] / first[2:, 3], [2, 1 / 2, 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(last[0], [0.5, 0.5, 0.95, 0.95], rtol=1e-6)
    assert boxes[:, 2:].max() == 1


def test_no_offset_is_the_default_box_clipped_to_the_picture():
    found = decode_boxes(np.zeros((len(DEFAULTS), 4), np.float32), DEFAULTS)
    corners = np.concatenate(
        [DEFAULTS[:, :2] - DEFAULTS[:, 2:] / 2, DEFAULTS[:, :2] + DEFAULTS[:, 2:] / 2], axis=1
    )
    np.testing.assert_allclose(found, corners.clip(0, 1), atol=1e-7)


def heads(classes: int, *, background: float = 3.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    offsets = rng.normal(size=(len(DEFAULTS), 4)).astype(np.float32)
    logits = rng.normal(0, 2, size=(len(DEFAULTS), classes + 1)).astype(np.float32)
    logits[:, 0] += background
    return offsets, logits


def by_onnxruntime(offsets, logits, limits) -> Detections:
    """Run the exported function: two identities stand for the network."""
    names = ("offsets", "logits")
    values = {name: value[None] for name, value in zip(names, (offsets, logits), strict=True)}
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_in"], [name]) for name in names],
        "main",
        [
            helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, value.shape)
            for name, value in values.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            for name, value in values.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    attach_detections(model, DEFAULTS, limits)
    onnx.checker.check_model(model, full_check=True)
    feeds = {f"{name}_in": value for name, value in values.items()}
    boxes, scores, labels, count = onnx_session(model.SerializeToString()).run(list(OUTPUTS), feeds)
    return cut(boxes, scores, labels, count, limits)


def by_kernel(offsets, logits, limits) -> Detections:
    target = load_target("host")
    workload = DetectionsWorkload(boxes=BOXES, classes=logits.shape[1] - 1, suppression=limits)
    function = write_detections(workload, plan_detections(workload, target.cpu))
    with lowering():
        library = tvm.compile(
            IRModule({"kernel": function.with_attr("global_symbol", "kernel")}),
            target=target.tvm_target(),
        )
    ends = np.cumsum((0, *BOXES))
    cuts = list(itertools.pairwise(ends))
    arrays = [offsets[None, a:b] for a, b in cuts] + [logits[None, a:b] for a, b in cuts]
    kept = limits.detections
    out = [
        np.full((1, kept, 4), np.nan, np.float32),
        np.full((1, kept), np.nan, np.float32),
        np.full((1, kept), -7, np.int32),
        np.full((1,), -7, np.int32),
    ]
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in [*arrays, DEFAULTS, *out]]
    library["kernel"](*tensors)
    boxes, scores, labels, count = (tensor.numpy() for tensor in tensors[-4:])
    return cut(boxes, scores, labels, count, limits)


def cut(boxes, scores, labels, count, limits) -> Detections:
    """Check what lies beyond the last detection, and cut it off."""
    kept = int(count[0])
    assert boxes.shape == (1, limits.detections, 4)
    assert not boxes[0, kept:].any()
    assert not scores[0, kept:].any()
    assert (labels[0, kept:] == -1).all()
    return Detections(boxes=boxes[0, :kept], scores=scores[0, :kept], classes=labels[0, :kept])


def assert_same(found: Detections, expected: Detections):
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=2e-6)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-6)


# From many more candidates than are kept to none; one class, fewer and more than a vector holds.
CASES = [(1, 0.0), (3, 3.0), (7, 0.0), (20, 3.0), (37, 6.0), (20, 30.0)]


@pytest.mark.parametrize(("classes", "background"), CASES)
def test_kernel_function_and_numpy_agree(classes, background):
    offsets, logits = heads(classes, background=background)
    expected = suppress(offsets, logits, DEFAULTS, LIMITS)
    assert (len(expected) == 0) == (background == 30)
    assert_same(by_onnxruntime(offsets, logits, LIMITS), expected)
    assert_same(by_kernel(offsets, logits, LIMITS), expected)


def test_fewer_than_the_most_are_filled_up():
    limits = Suppression(score_threshold=0.3, iou_threshold=0.3, detections=50)
    offsets, logits = heads(5)
    expected = suppress(offsets, logits, DEFAULTS, limits)
    assert 0 < len(expected) < 50
    assert_same(by_onnxruntime(offsets, logits, limits), expected)
    assert_same(by_kernel(offsets, logits, limits), expected)


def test_of_equal_scores_the_lower_class_goes_first_and_then_the_earlier_box():
    offsets = np.zeros((len(DEFAULTS), 4), np.float32)
    logits = np.zeros((len(DEFAULTS), 4), np.float32)
    limits = Suppression(score_threshold=0.1, iou_threshold=0.9, detections=200)
    expected = suppress(offsets, logits, DEFAULTS, limits)
    assert list(expected.classes) == sorted(expected.classes)
    assert_same(by_onnxruntime(offsets, logits, limits), expected)
    assert_same(by_kernel(offsets, logits, limits), expected)


def test_only_boxes_of_the_same_class_suppress_each_other():
    offsets = np.zeros((len(DEFAULTS), 4), np.float32)
    logits = np.full((len(DEFAULTS), 3), -20, np.float32)
    logits[:, 0] = 0
    logits[5, 1], logits[5, 2] = 9, 8
    found = by_kernel(offsets, logits, LIMITS)
    assert list(found.classes) == [0, 1]
    np.testing.assert_array_equal(found.boxes[0], found.boxes[1])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_outputs_stay_finite(scale):
    offsets, logits = heads(6)
    found = by_kernel(offsets * np.float32(scale), logits * np.float32(abs(scale)), LIMITS)
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
