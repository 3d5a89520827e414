"""LR-ASPP and DeepLabv3: counts, strides and rates, and torchvision's weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from tests.models.test_publishers import in_layout_of, publisher_of
from tvm_mobilenet.models.bottleneck_table import BottleneckSpec
from tvm_mobilenet.models.segmentation_table import atrous_v2_blocks, atrous_v3_blocks
from tvm_mobilenet.models.spec import get_model_spec, list_models
from tvm_mobilenet.models.weights import create_model, new_module

ON_V3 = {
    # torchvision 0.28: tensors of the state dict, and a digest of their names and shapes; those of
    # the auxiliary classifier and the batch counters left out.
    "lraspp_mobilenet_v3_large": (272, "570bdc12455ee9e9"),
    "deeplabv3_mobilenet_v3_large": (299, "5ce2871359882529"),
}
AUXILIARY = {"aux_classifier.0.weight": torch.zeros(10, 40, 3, 3)}


def test_counts_are_the_published():
    rows = {row.name: row for row in list_models()}
    lraspp = rows["lraspp_mobilenet_v3_large_520"]
    # torchvision's own count of its module: 3,221,538 parameters, 2.086 G multiply-adds.
    assert (lraspp.params, lraspp.macs // 10**6) == (3_221_538, 2086)
    on_v3 = rows["deeplabv3_mobilenet_v3_large_520"]
    # torchvision counts 11,029,328 with the auxiliary classifier: 40 > 10 in 3x3, 10 > 21 in 1x1.
    auxiliary = 40 * 10 * 9 + 2 * 10 + 10 * 21 + 21
    assert on_v3.params == 11_029_328 - auxiliary
    assert round((on_v3.macs + 65 * 65 * (40 * 10 * 9 + 10 * 21)) / 1e6) == 10452
    on_v2 = rows["deeplabv3_mobilenet_v2_513"]
    assert round(on_v2.params / 1e6, 2) == on_v2.published_params_m == 2.11
    # The table has 2.75 G with the blowing up of 513 x 513 pixels' scores.
    assert round((on_v2.macs + 2 * 21 * 513**2) / 1e7) == 275


def test_the_last_stride_becomes_a_rate():
    v2, v3 = atrous_v2_blocks(), atrous_v3_blocks()
    for blocks, rates in ((v2, [1, 2, 2, 2]), (v3[:-1], [2, 2, 2])):
        kept = [b for b in blocks if isinstance(b, BottleneckSpec)]
        assert np.prod([b.stride for b in kept]) == 8  # after the stem's 2: 16
        assert [b.dilation for b in kept][-len(rates) :] == rates
        assert {b.dilation for b in kept[: -len(rates)]} == {1}


@pytest.mark.parametrize("name", ON_V3)
def test_keys_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        module = new_module(get_model_spec(f"{name}_64"), 21)
    state = in_layout_of(publisher_of(module, "torchvision"), module)
    lines = sorted(
        f"{key} {tuple(value.shape)}"
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    )
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(lines), digest) == ON_V3[name]


@pytest.mark.parametrize("name", ON_V3)
def test_reads_torchvisions_weights_with_vocs_names(tmp_path, name):
    source = create_model(f"{name}_33", seed=1).module
    path = tmp_path / "theirs.pth"
    torch.save(in_layout_of(publisher_of(source, "torchvision"), source) | AUXILIARY, path)
    created = create_model(f"{name}_33", weights=path)
    assert created.class_names is not None
    assert (created.class_names[0], created.class_names[15]) == ("background", "person")
    assert created.preprocessing.fit == "stretch"
    x = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = created.module(x), source(x)
    assert found.shape == (1, 21, 33, 33)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    # The body has torchvision's epsilon, the head torch's default.
    assert {norm.eps for norm in created.module.shared_norms()} == {1e-3}
    heads = set(created.module.modules()) - set(created.module.shared_norms())
    assert {m.eps for m in heads if isinstance(m, torch.nn.BatchNorm2d)} == {1e-5}
