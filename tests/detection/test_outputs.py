from __future__ import annotations

import numpy as np
import pytest

from tvm_mobilenet.detection.average_precision import TrueBoxes, average_precision
from tvm_mobilenet.detection.outputs import aligned, as_outputs, read_outputs
from tvm_mobilenet.detection.suppression import Detections

SIZE = 6
BOXES = np.asarray([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.1, 0.6, 0.3, 0.9]], np.float32)


def detections(scores, classes=(0, 1, 0), boxes=BOXES) -> Detections:
    return Detections(
        boxes=np.asarray(boxes, np.float32),
        scores=np.asarray(scores, np.float32),
        classes=np.asarray(classes, np.int32),
    )


def difference(ours: Detections, theirs: Detections, tolerance=1e-4) -> float:
    found, expected = aligned(as_outputs(ours, SIZE), as_outputs(theirs, SIZE), tolerance)
    return max(float(np.abs(found[n].astype(float) - expected[n]).max()) for n in found)


def test_outputs_are_read_as_they_were_written():
    written = detections([0.9, 0.8, 0.7])
    read = read_outputs(as_outputs(written, SIZE))
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


def test_detections_that_changed_places_are_compared_with_their_partners():
    theirs = detections([0.9, 0.80001, 0.8])
    ours = detections([0.9, 0.80001, 0.8], (0, 0, 1), BOXES[[0, 2, 1]])
    assert difference(ours, theirs) < 2e-5


def test_the_last_of_the_list_may_be_another_one_of_the_same_score():
    theirs = detections([0.9, 0.8, 0.70001])
    ours = detections([0.9, 0.8, 0.7], (0, 1, 3), np.concatenate([BOXES[:2], BOXES[:1]]))
    assert difference(ours, theirs) == 0


@pytest.mark.parametrize(
    "ours",
    [
        detections([0.9, 0.7], (0, 0), BOXES[[0, 2]]),  # one is missing in the middle
        detections([0.9, 0.8, 0.7], (0, 2, 0)),  # of another class
        detections([0.9, 0.8, 0.7], boxes=BOXES[[0, 0, 2]]),  # elsewhere
        detections([], (), np.zeros((0, 4))),
    ],
)
def test_a_detection_without_partner_is_a_difference(ours):
    theirs = detections([0.9, 0.8, 0.7])
    assert difference(ours, theirs) > 0.5
    assert difference(theirs, ours) > 0.5


def test_equal_empty_boxes_are_partners():
    empty = np.asarray([[0.2, 0, 0.2, 0]], np.float32)
    both = detections([0.5], (0,), empty)
    assert difference(both, both) == 0


TRUE = [
    TrueBoxes(boxes=BOXES[:2], classes=np.asarray([0, 1])),
    TrueBoxes(boxes=BOXES[2:], classes=np.asarray([0])),
]


def test_average_precision_of_perfect_half_and_no_detections(capsys):
    perfect = [
        detections([0.9, 0.8], (0, 1), BOXES[:2]),
        detections([0.9], (0,), BOXES[2:]),
    ]
    assert average_precision(perfect, TRUE, 2).mean == pytest.approx(1)
    one_class = [detections([0.8], (1,), BOXES[1:2]), detections([], (), np.zeros((0, 4)))]
    assert average_precision(one_class, TRUE, 2).mean == pytest.approx(0.5)
    nothing = [detections([], (), np.zeros((0, 4)))] * 2
    assert average_precision(nothing, TRUE, 2).mean == 0
    assert capsys.readouterr().out == ""
