"""The numbers of a comparison, each against a case worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tvm_mobilenet.verify.parity import THRESHOLDS, compare_outputs, threshold_for

LIMIT = THRESHOLDS["float32"].relative_l2


def compare(expected, found, **options):
    return compare_outputs(
        "onnxruntime",
        "y",
        [np.asarray(value, np.float32) for value in expected],
        [np.asarray(value, np.float32) for value in found],
        **options,
    )


def test_equal_outputs_are_exact():
    found = compare([[[1, -2, 3]]], [[[1, -2, 3]]])
    assert found.max_abs_error == 0
    assert found.relative_l2 == 0
    assert found.cosine == pytest.approx(1)
    assert found.snr_db is None
    assert found.top1_agreement == 1
    assert found.top5_agreement is None  # there are no six classes
    assert found.is_within


def test_numbers_worked_out_by_hand():
    found = compare([[[3.0, 4.0]]], [[[3.0, 4.5]]])
    assert found.max_abs_error == 0.5
    assert found.max_abs_reference == 4
    assert found.relative_l2 == pytest.approx(0.1)
    assert found.snr_db == pytest.approx(20)
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert found.failures == ("relative L2 0.1 (at most 0.0001)",)


def test_the_worst_input_counts():
    good, bad = [[1.0, 0.0]], [[1.0, 0.01]]
    found = compare([good, good, good], [good, bad, good])
    assert found.relative_l2 == pytest.approx(0.01)
    assert found.inputs == 3


def test_just_within_and_just_beyond():
    base = np.ones((1, 4), np.float32)
    assert compare([base], [base * np.float32(1 + 0.9 * LIMIT)]).is_within
    assert not compare([base], [base * np.float32(1 + 1.2 * LIMIT)]).is_within


def test_top1_is_the_share_of_inputs():
    reference = [[[0.1, 0.9, 0.2]]] * 4
    found = compare(reference, [*reference[:3], [[0.9, 0.1, 0.2]]])
    assert found.top1_agreement == 0.75
    assert any("top-1 agreement 75.00%" in text for text in found.failures)


def test_a_tie_is_no_disagreement():
    reference = [[[1.0, 1.0 - 1e-7, 0.0]]]
    assert compare(reference, [[[1.0 - 2e-7, 1.0, 0.0]]]).top1_agreement == 1
    assert compare([[[1.0, 0.99, 0.0]]], [[[0.98, 1.0, 0.0]]]).top1_agreement == 0


def test_top5_is_a_set():
    reference = [[[9, 8, 7, 6, 5, 1, 0]]]
    assert compare(reference, [[[5, 6, 7, 8, 9, 1, 0]]]).top5_agreement == 1
    assert compare(reference, [[[9, 8, 7, 6, 0, 1, 5]]]).top5_agreement == 0


def test_every_row_of_a_batch_counts():
    reference = [[[1.0, 0.0], [0.0, 1.0]]]
    assert compare(reference, [[[1.0, 0.0], [1.0, 0.0]]]).top1_agreement == 0.5


def test_of_a_segmenter_every_pixel_counts():
    scores = [[[0, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 1 - 1e-7], [0, 1]]]
    reference = np.array([scores], np.float64)
    swapped = reference.copy()
    swapped[0, 2, 0, 1] = 1 + 1e-7  # a tie
    assert compare([reference], [swapped], pixels=True).top1_agreement == 1
    swapped[0, 2, 0, 0] = 2
    found = compare([reference], [swapped], pixels=True)
    assert found.top1_agreement == 0.75
    assert not found.is_within


def test_feature_maps_have_no_classes():
    value = np.ones((1, 2, 3, 3))
    assert compare([value], [value]).top1_agreement is None
    flat = np.ones((1, 8))
    assert compare([flat], [flat], classes=False).top1_agreement is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(bad: float):
    found = compare([[[1.0, 2.0]]], [[[bad, 2.0]]])
    assert found.not_finite == 1
    assert not found.is_within
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_same_infinity_in_both_is_equal():
    found = compare([[[np.inf, 2.0, np.nan]]], [[[np.inf, 2.0, np.nan]]])
    assert found.not_finite == 0
    assert found.is_within


def test_something_where_there_should_be_nothing_fails():
    found = compare([[[0.0, 0.0]]], [[[0.0, 1e-9]]])
    assert found.relative_l2 == math.inf
    assert not found.is_within
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["relative_l2"] is None
    assert compare([[[0.0, 0.0]]], [[[0.0, 0.0]]]).is_within


def test_integers_are_equal_or_not():
    assert threshold_for("int64").relative_l2 == 0
    same = compare_outputs("onnxruntime", "y", [np.arange(3)], [np.arange(3)])
    off = compare_outputs("onnxruntime", "y", [np.arange(3)], [np.arange(1, 4)])
    assert same.is_within
    assert not off.is_within


def test_other_shapes_are_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="shapes"):
        compare([np.ones((1, 2))], [np.ones((2, 1))])
