"""V2, V3 and V4: what the tables say is what the modules are."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from tests.models.test_mobilenet_v1 import counted
from tvm_mobilenet.models.bottleneck_table import BottleneckSpec, make_divisible
from tvm_mobilenet.models.families import FAMILIES
from tvm_mobilenet.models.mobilenet_v2_table import head_channels, stem_channels, v2_blocks
from tvm_mobilenet.models.mobilenet_v3_table import v3_blocks
from tvm_mobilenet.models.mobilenet_v4_table import Variant, v4_blocks
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weights import create_model, new_module

SMALL = (
    "mobilenet_v2_0.35_33",
    "mobilenet_v2_1.4_64",
    "mobilenet_v3_large_0.5_50",
    "mobilenet_v3_large_minimalistic_0.75_33",
    "mobilenet_v3_small_1.25_64",
    "mobilenet_v3_small_minimalistic_0.3_100",
    "mobilenet_v4_conv_small_65",
    "mobilenet_v4_conv_medium_32",
    "mobilenet_v4_conv_large_96",
    "lraspp_mobilenet_v3_large_65",
    "deeplabv3_mobilenet_v2_97",
    "deeplabv3_mobilenet_v3_large_50",
)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [1, 10])
def test_odd_sizes_count_as_the_module_does(name, classes):
    spec = get_model_spec(name)
    with torch.device("meta"):
        module = new_module(spec, classes)
    assert counted(module, spec.resolution) == (spec.params(classes), spec.macs(classes))


@pytest.mark.parametrize("name", SMALL)
def test_layer_table_has_the_shapes_that_torch_computes(name):
    spec = get_model_spec(name)
    with torch.device("meta"):
        module = new_module(spec, 10).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for child_name, child in module.named_modules():
        child.register_forward_hook(
            lambda _m, _i, out, name=child_name: seen.update({name: tuple(out.shape)})
        )
    module(torch.empty(1, 3, spec.resolution, spec.resolution, device="meta"))
    layers = spec.layers(10)
    for layer in layers:
        expected: tuple[int, ...] = (1, layer.out_channels)
        if layer.kind != "dense":
            expected += (layer.out_size, layer.out_size)
        assert seen[layer.name] == expected, layer.name
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == len(convolutions)


CLASSIFIERS = [name for name, family in FAMILIES.items() if family.task == "classification"]


@pytest.mark.parametrize("family", CLASSIFIERS[1:])
def test_batch_norms_and_dropout_follow_the_recipe(family):
    spec = get_model_spec(f"{family}_{'1.0_' if FAMILIES[family].has_alpha else ''}32")
    with torch.device("meta"):
        module = new_module(spec, 10, dropout=0.5)
    assert {(m.eps, m.momentum) for m in module.shared_norms()} == {(1e-3, 0.01)}
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == sum(layer.is_normalized for layer in spec.layers())
    assert [m.p for m in module.modules() if isinstance(m, nn.Dropout)] == [0.5]


@pytest.mark.parametrize(
    ("width", "expected"),
    # 11.2 would lose more than a tenth at 8, 44.8 rounds to the nearest, 3 is less than 8.
    [(11.2, 16), (44.8, 48), (3, 8), (18, 24), (30, 32), (12, 16), (83, 80)],
)
def test_widths_never_lose_more_than_a_tenth(width, expected):
    assert make_divisible(width) == expected


def test_a_multiplier_below_one_leaves_the_last_layer_alone():
    assert [head_channels(alpha) for alpha in (0.35, 0.75, 1.0, 1.3, 1.4)] == [
        1280,
        1280,
        1280,
        1664,
        1792,
    ]
    assert [stem_channels(alpha) for alpha in (0.35, 1.0, 1.4)] == [16, 32, 48]
    heads = [get_model_spec(f"mobilenet_v3_small_{a}_224").layers()[-2] for a in (0.5, 1, 1.5)]
    assert [head.out_channels for head in heads] == [1024, 1024, 1536]


def test_v2_is_that_of_the_paper():
    blocks = v2_blocks(1.0)
    assert len(blocks) == 17
    assert [b.out_channels for b in blocks] == (
        [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    )
    assert [b.stride for b in blocks].count(2) == 4
    assert [b.is_residual for b in blocks].count(True) == 10
    assert {b.activation for b in blocks} == {"relu6"}
    assert blocks[0].expand_kernel == 0
    assert all(b.expanded == 6 * b.in_channels for b in blocks[1:])


def test_v3_is_that_of_the_paper():
    large = [b for b in v3_blocks("large", 1.0) if isinstance(b, BottleneckSpec)]
    assert [b.kernel for b in large].count(5) == 6
    assert [b.squeeze for b in large if b.squeeze] == [24, 32, 32, 120, 168, 168, 240, 240]
    assert [b.activation for b in large].index("hard-swish") == 6
    small = [b for b in v3_blocks("small", 1.0) if isinstance(b, BottleneckSpec)]
    assert [b.squeeze for b in small] == [8, 0, 0, 24, 64, 64, 32, 40, 72, 144, 144]
    assert small[0].stride == 2
    for variant in ("large_minimalistic", "small_minimalistic"):
        plain = [b for b in v3_blocks(variant, 1.0) if isinstance(b, BottleneckSpec)]
        assert {(b.kernel, b.squeeze, b.activation) for b in plain} == {(3, 0, "relu")}
    # Without squeeze-and-excite the widths stay: only kernels and activations change.
    assert [b.expanded for b in v3_blocks("small", 1.0) if isinstance(b, BottleneckSpec)] == [
        b.expanded for b in v3_blocks("small_minimalistic", 1.0) if isinstance(b, BottleneckSpec)
    ]


def test_v3_expands_what_goes_in_by_the_unscaled_factor():
    scaled = v3_blocks("large", 0.75)
    assert isinstance(scaled[2], BottleneckSpec)
    # 72 / 24 of the 24 that 0.75 * 24 = 18 is rounded to; 0.75 * 72 would be 56.
    assert (scaled[2].in_channels, scaled[2].expanded) == (24, 72)


def test_v4_has_the_four_kinds_of_universal_bottleneck():
    kinds = {
        (bool(b.start_kernel), bool(b.kernel))
        for variant in get_args(Variant)
        for b in v4_blocks(variant)
        if isinstance(b, BottleneckSpec) and b.expand_kernel == 1
    }
    assert kinds == {(True, True), (False, True), (True, False), (False, False)}
    medium = v4_blocks("conv_medium")
    assert isinstance(medium[0], BottleneckSpec)
    assert (medium[0].expand_kernel, medium[0].expand_stride, medium[0].kernel) == (3, 2, 0)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2_0.35_64", "mobilenet_v3_small_0.5_64", "mobilenet_v4_conv_small_64"]
)
def test_random_weights_are_the_same_each_time_and_keep_the_activations_alive(name):
    first, second = (create_model(name, num_classes=10, seed=3).module for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = first(x)
    assert logits.isfinite().all()
    assert logits.std(0).max() > 1e-3, "different pictures give different logits"
    assert logits.abs().max() < 1e3
