from __future__ import annotations

import pytest

from tests.exploration.conftest import ScriptedProber
from tvm_mobilenet.exploration.candidates import list_candidates
from tvm_mobilenet.exploration.prediction import Known, predict

ALL = {one.model: one for one in list_candidates()}
V1 = [
    ALL[f"mobilenet_v1_{alpha}_{res}"] for alpha, res in (("0.25", 128), ("0.5", 160), ("1.0", 224))
]


def known(*costs):
    return [Known(candidate, cost) for candidate, cost in zip(V1, costs, strict=False)]


def test_nothing_measured_gives_no_prediction():
    assert predict(V1[0], []) is None


def test_between_two_models_of_a_family_a_power_of_the_multiply_adds():
    exponent = 0.9
    small, _, large = (candidate.macs**exponent for candidate in V1)
    found = predict(V1[1], [Known(V1[0], small), Known(V1[2], large)])
    assert found is not None
    assert found.grounds == "interpolated"
    assert found.cost == pytest.approx(V1[1].macs ** exponent)


def test_from_other_families_the_median_rate():
    other = ALL["mobilenet_v3_large_1.0_224"]
    rates = [1.0, 2.0, 9.0]
    found = predict(other, [Known(c, r * c.macs) for c, r in zip(V1, rates, strict=True)])
    assert found is not None
    assert found.grounds == "other families"
    assert found.cost == pytest.approx(2.0 * other.macs)


def test_the_less_it_stands_on_the_wider_it_is():
    def width(prediction):
        return (prediction.high - prediction.low) / prediction.cost

    near = predict(V1[1], [known(1.0)[0], Known(V1[2], 30.0)])
    far = predict(V1[1], known(1.0))
    other = predict(ALL["mobilenet_v2_1.0_224"], known(1.0))
    assert width(near) < width(far) < width(other)


def test_it_learns_from_its_errors():
    sure = predict(V1[1], known(1.0), {"same family": [0.01]})
    burnt = predict(V1[1], known(1.0), {"same family": [0.01, 0.5]})
    assert sure is not None
    assert burnt is not None
    assert sure.low > burnt.low > 0


@pytest.mark.parametrize("seed", range(5))
def test_costs_that_grow_with_multiply_adds_are_within_what_is_predicted(seed):
    prober = ScriptedProber(seed=seed)
    measured = [Known(one, prober.cost(one)) for one in list(ALL.values())[::6]]
    for candidate in ALL.values():
        found = predict(candidate, measured)
        assert found is not None
        assert found.low <= prober.cost(candidate) <= found.high * 1.2
