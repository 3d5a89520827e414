from __future__ import annotations

import pytest

from tvm_mobilenet.errors import InputFileError, SpecError
from tvm_mobilenet.exploration.candidates import list_candidates
from tvm_mobilenet.models.spec import MODELS, get_model_spec


def test_all_published_models_are_candidates_the_most_accurate_first():
    found = list_candidates()
    assert {one.model for one in found} == {n for n in MODELS if n.startswith("mobilenet_v")}
    assert [one.accuracy for one in found] == sorted((o.accuracy for o in found), reverse=True)
    one = next(one for one in found if one.model == "mobilenet_v1_0.5_160")
    assert one.accuracy == 59.1
    assert one.macs == get_model_spec(one.model).macs()


@pytest.mark.parametrize(
    ("words", "families"),
    [
        (["v2"], {"mobilenet_v2"}),
        (["v1", "mobilenet_v3_small"], {"mobilenet_v1", "mobilenet_v3_small"}),
        (["v4"], {f"mobilenet_v4_conv_{size}" for size in ("small", "medium", "large")}),
    ],
)
def test_families_are_named_short_or_whole(words, families):
    assert {one.family for one in list_candidates(words)} == families


@pytest.mark.parametrize("word", ["v9", "resnet", "", "v"])
def test_an_unknown_family_is_refused(word):
    with pytest.raises(SpecError, match="give v1, v2, v3, v4"):
        list_candidates([word])


def test_int8_models_are_those_with_a_published_int8_accuracy():
    found = list_candidates(dtypes=["int8"])
    assert {one.family.split("_")[1] for one in found} == {"v1", "v3"}
    by_name = {one.name: one for one in found}
    assert by_name["mobilenet_v1_1.0_224 int8"].accuracy == 69.7
    assert by_name["mobilenet_v3_large_1.0_224 int8"].accuracy == 73.9
    assert "mobilenet_v3_large_0.75_224 int8" not in by_name  # not published
    both = list_candidates(dtypes=["float32", "int8"])
    assert len(both) == len(found) + len(list_candidates())
    float32 = next(one for one in both if one.name == "mobilenet_v1_1.0_224")
    assert float32.weight_bytes == 4 * by_name["mobilenet_v1_1.0_224 int8"].weight_bytes


def test_an_unknown_dtype_is_refused():
    with pytest.raises(SpecError, match="dtype 'int4'"):
        list_candidates(dtypes=["int4"])


def test_accuracies_of_ones_own_take_the_place_of_the_published(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("model,accuracy,remark\nmobilenet_v1_0.3_96,44.5,x\nmobilenet_v2_0.5_96,51,\n")
    found = list_candidates(accuracy=path)
    assert [(one.model, one.accuracy) for one in found] == [
        ("mobilenet_v2_0.5_96", 51.0),
        ("mobilenet_v1_0.3_96", 44.5),
    ]
    assert [one.family for one in list_candidates(["v1"], accuracy=path)] == ["mobilenet_v1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line is empty"),
        ("name,top1\n", "its first line is name,top1"),
        ("model,accuracy\nresnet50,70\n", "line 2: unknown model 'resnet50'"),
        ("model,accuracy\nmobilenet_v1_0.5_8,70\n", "line 2: model .* resolution is 8"),
        ("model,accuracy\nmobilenet_v1_0.5_96,high\n", "line 2: accuracy is 'high'"),
        ("model,accuracy\nmobilenet_v1_0.5_96,101\n", "line 2: accuracy is '101'"),
        ("model,accuracy\nmobilenet_v1_0.5_96,nan\n", "line 2: accuracy is 'nan'"),
        ("model,accuracy\nmobilenet_v1_0.5_96\n", "line 2: accuracy is None"),
        ("model,accuracy\n" + 2 * "mobilenet_v1_0.5_96,50\n", "line 3: .* is there twice"),
        ("model,accuracy\n", "no model of"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused_in_one_line(text, said, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises((InputFileError, SpecError), match=said) as caught:
        list_candidates(accuracy=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputFileError, match="no such file"):
        list_candidates(accuracy=tmp_path / "none.csv")
