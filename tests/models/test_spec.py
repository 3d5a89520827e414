from __future__ import annotations

import subprocess
import sys

import pytest

from tvm_mobilenet.errors import SpecError, UnknownModelError
from tvm_mobilenet.models.spec import FAMILIES, MODELS, get_model_spec, list_models

ROWS = {row.name: row for row in list_models()}
V1 = [name for name in ROWS if MODELS[name].family == "mobilenet_v1"]
V2 = [name for name in ROWS if MODELS[name].family == "mobilenet_v2"]
V3 = [name for name in ROWS if MODELS[name].family.startswith("mobilenet_v3")]


def test_lists_the_published_models_in_the_order_of_their_tables():
    assert list(ROWS) == list(MODELS)
    assert [len(V1), len(V2), len(V3)] == [16, 22, 6]
    assert V1[0] == "mobilenet_v1_1.0_224"
    assert V1[-1] == "mobilenet_v1_0.25_128"
    assert V2[0] == "mobilenet_v2_1.4_224"
    assert set(V3) == {
        "mobilenet_v3_large_1.0_224",
        "mobilenet_v3_large_0.75_224",
        "mobilenet_v3_large_minimalistic_1.0_224",
        "mobilenet_v3_small_1.0_224",
        "mobilenet_v3_small_0.75_224",
        "mobilenet_v3_small_minimalistic_1.0_224",
    }
    assert [name for name in ROWS if name.startswith("mobilenet_v4")] == [
        "mobilenet_v4_conv_small_224",
        "mobilenet_v4_conv_medium_256",
        "mobilenet_v4_conv_large_384",
    ]


def normalized_channels(name: str) -> int:
    return sum(layer.out_channels for layer in MODELS[name].layers() if layer.is_normalized)


@pytest.mark.parametrize("name", V1 + V3)
def test_multiply_adds_agree_with_the_published_unless_a_slip_is_noted(name):
    row = ROWS[name]
    # The tables are in whole millions; 149.497 stands there as 150.
    agrees = abs(row.macs / 1e6 - row.published_macs_m) < 0.51
    assert agrees == (row.note == "")


@pytest.mark.parametrize("name", V1)
def test_parameters_of_v1_agree_with_the_published(name):
    row = ROWS[name]
    assert abs(row.params / 1e6 - row.published_params_m) < 0.01
    # What the family's note on parameters claims: one more for each batch-norm channel.
    assert round((row.params + normalized_channels(name)) / 1e6, 2) == row.published_params_m


@pytest.mark.parametrize("name", V2)
def test_figures_of_v2_are_the_published_without_batch_norms_and_cut_off(name):
    row = ROWS[name]
    assert row.macs // 10**6 == row.published_macs_m
    folded = row.params - 2 * normalized_channels(name)
    assert round(folded / 1e6, 2) == row.published_params_m
    assert row.note == ""


@pytest.mark.parametrize("name", V3)
def test_parameters_of_v3_agree_with_the_published(name):
    row = ROWS[name]
    # The table has tenths, 5.483 as 5.4. Its figures for small are those of a wider head.
    missing = 0
    if MODELS[name].family == "mobilenet_v3_small":
        classifier, head = (MODELS[name].layers()[i] for i in (-1, -2))
        missing = (1280 - head.out_channels) * (head.in_channels + 1 + classifier.out_channels)
    assert 0 <= (row.params + missing) / 1e6 - row.published_params_m + 0.0065 < 0.1


def test_the_wider_head_explains_the_three_quarter_small():
    row = ROWS["mobilenet_v3_small_0.75_224"]
    head = MODELS[row.name].layers()[-2]
    wider = row.macs + (1280 - 1024) * (head.in_channels + 1000)
    assert round(wider / 1e6) == row.published_macs_m == 44
    assert "1280 wide" in row.note


def test_figures_of_v4_agree_with_the_paper_in_its_units():
    small, medium, large = (row for name, row in ROWS.items() if name.startswith("mobilenet_v4"))
    assert (round(small.params / 1e6, 1), round(small.macs / 1e9, 1)) == (3.8, 0.2)
    assert (medium.params * 10 // 2**20 / 10, round(medium.macs / 2**30, 1)) == (9.2, 1.0)
    assert (round(large.params / 2**20), round(large.macs / 2**30, 1)) == (31, 5.9)
    for row in (small, medium, large):
        assert "rounded" in row.note
    published = [(row.published_params_m, row.published_macs_m) for row in (small, medium, large)]
    assert published == [(3.8, 200), (9.2, 1000), (31, 5900)]


@pytest.mark.parametrize("name", [name for name in V1 if "_0.75_" in name])
def test_the_stem_is_what_the_published_three_quarter_widths_leave_out(name):
    stem = MODELS[name].layers()[0].macs
    assert abs((ROWS[name].macs - stem) / 1e6 - ROWS[name].published_macs_m) < 0.51
    assert "leave out the stem" in ROWS[name].note


def test_the_slip_at_a_quarter_width_is_named():
    row = ROWS["mobilenet_v1_0.25_192"]
    assert row.published_macs_m == 34
    assert round(row.macs / 1e6) == 30
    assert "slip" in row.note


def test_known_rows():
    assert (ROWS["mobilenet_v1_1.0_224"].params, ROWS["mobilenet_v1_1.0_224"].macs) == (
        4_231_976,
        568_740_352,
    )
    assert ROWS["mobilenet_v1_0.5_224"].published_top1 == 63.3
    assert ROWS["mobilenet_v1_0.5_224"].published_top5 == 84.9


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("mobilenet_v1_0.5_160", "mobilenet_v1_0.5_160"),
        ("mobilenet_v1_1_100", "mobilenet_v1_1.0_100"),
        ("mobilenet_v1_.35_96", "mobilenet_v1_0.35_96"),
        ("mobilenet_v1_0.00001_32", "mobilenet_v1_0.00001_32"),
        ("mobilenet_v1_2.5_33", "mobilenet_v1_2.5_33"),
        ("mobilenet_v2_1_96", "mobilenet_v2_1.0_96"),
        ("mobilenet_v3_large_.5_64", "mobilenet_v3_large_0.5_64"),
        ("mobilenet_v3_small_minimalistic_1_64", "mobilenet_v3_small_minimalistic_1.0_64"),
        ("mobilenet_v4_conv_medium_224", "mobilenet_v4_conv_medium_224"),
    ],
)
def test_any_width_and_resolution_can_be_named(given, canonical):
    spec = get_model_spec(given)
    assert spec.name == canonical
    assert get_model_spec(canonical) == spec


def test_a_model_outside_the_table_has_no_published_figures():
    assert get_model_spec("mobilenet_v1_0.25_32").published is None
    assert get_model_spec("mobilenet_v1_0.25_128").published is not None


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("mobilnet_v1_1.0_224", "mobilenet_v1_1.0_224"),
        ("mobilenet_v1_0.5-160", "mobilenet_v1_0.5_160"),
        ("MobileNet_v1_0.25_128", "mobilenet_v1_0.25_128"),
        ("mobilenet_v3_large_224", "mobilenet_v3_large_1.0_224"),
        ("mobilenet_v4_conv_small_1.0_224", "mobilenet_v4_conv_small_224"),
    ],
)
def test_an_unknown_name_gets_the_closest_one_suggested(name, closest):
    with pytest.raises(UnknownModelError, match=f"did you mean '{closest}'"):
        get_model_spec(name)


@pytest.mark.parametrize("name", ["", "resnet", "mobilenet_v1_nan_224", "mobilenet_v1_1e5_224"])
def test_a_name_of_no_family_is_refused(name):
    with pytest.raises(UnknownModelError, match="mobilenet_v1_<alpha>_<resolution>"):
        get_model_spec(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mobilenet_v1_0_224", "alpha is 0.0"),
        ("mobilenet_v2_0_224", "alpha is 0.0"),
        ("mobilenet_v3_small_1000_224", "weights pass the 2 GiB"),
        ("mobilenet_v4_conv_small_31", "resolution is 31, but the strides need at least 32"),
        ("mobilenet_v1_0.0_224", "alpha is 0.0"),
        ("mobilenet_v1_-0.5_224", "alpha is -0.5"),
        ("mobilenet_v1_1.0_0", "resolution is 0"),
        ("mobilenet_v1_1.0_-224", "resolution is -224"),
        ("mobilenet_v1_1.0_31", "resolution is 31, but the strides need at least 32"),
        ("mobilenet_v1_1.0_100000", "one picture alone passes 2 GiB"),
        ("mobilenet_v1_1000_224", "weights pass the 2 GiB"),
        ("mobilenet_v1_99999999999999999999_224", "weights pass the 2 GiB"),
    ],
)
def test_an_impossible_size_is_refused(name, found):
    with pytest.raises(SpecError, match=found):
        get_model_spec(name)


def test_counting_needs_no_torch():
    code = (
        "import sys; from tvm_mobilenet.models.spec import list_models; "
        "assert len(list_models()) == 53; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_explains_its_parameter_count(family):
    assert "batch-norm channel" in family.params_note
