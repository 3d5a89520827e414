from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tvm_mobilenet.errors import SpecError, WeightsError
from tvm_mobilenet.models.spec import get_model_spec, list_models
from tvm_mobilenet.models.ssd import Ssd, _torchvision_names
from tvm_mobilenet.models.ssd_table import map_sizes
from tvm_mobilenet.models.weights import create_model, new_module

NAMES = (
    "ssd_mobilenet_v1_1.0_300",
    "ssdlite_mobilenet_v2_1.0_320",
    "ssdlite_mobilenet_v3_large_320",
)
SMALL = ("ssd_mobilenet_v1_0.5_75", "ssdlite_mobilenet_v2_0.35_96", "ssdlite_mobilenet_v3_large_64")


def test_figures_are_the_published():
    v1, v2, v3 = map(get_model_spec, NAMES)
    assert (round(v1.params() / 1e6, 1), round(v1.macs() / 1e9, 1)) == (6.8, 1.2)
    # The paper counts COCO's 80 classes without the gaps in their numbers.
    assert (round(v2.params(80) / 1e6, 1), round(v2.macs(80) / 1e9, 1)) == (4.3, 0.8)
    # torchvision's documentation, to the digit.
    assert v3.params() == 3440060
    assert round(v3.macs() / 1e9, 3) == 0.583
    assert [row.published_map for row in list_models() if row.published_map] == [19.3, 22.1, 21.3]


@pytest.mark.parametrize("name", [*NAMES, *SMALL])
def test_layer_table_has_the_shapes_that_torch_computes(name):
    spec = get_model_spec(name)
    with torch.device("meta"):
        module = new_module(spec, 7).eval()
    assert isinstance(module, Ssd)
    seen: dict[str, tuple[int, ...]] = {}
    for child_name, child in module.named_modules():
        child.register_forward_hook(
            lambda _m, _i, out, name=child_name: seen.update({name: getattr(out, "shape", ())})
        )
    offsets, logits = module(torch.empty(1, 3, spec.resolution, spec.resolution, device="meta"))
    layers = spec.layers(7)
    for layer in layers:
        expected = (1, layer.out_channels, layer.out_size, layer.out_size)
        assert tuple(seen[layer.name]) == expected, layer.name
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == len(convolutions)
    assert spec.params(7) == sum(p.numel() for p in module.parameters())
    boxes = len(module.default_boxes(spec.resolution))
    assert tuple(offsets.shape) == (1, boxes, 4)
    assert tuple(logits.shape) == (1, boxes, 8)


def test_the_first_map_of_ssdlite_is_the_expansion_with_stride_16():
    for name, channels in ((NAMES[1], 576), (NAMES[2], 672)):
        with torch.device("meta"):
            module = new_module(get_model_spec(name), 90).eval()
        assert isinstance(module, Ssd)
        maps = module.features(torch.empty(1, 3, 320, 320, device="meta"))
        assert [m.shape[2] for m in maps] == list(map_sizes(320)) == [20, 10, 5, 3, 2, 1]
        assert maps[0].shape[1] == channels


def published(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a state dict as torchvision publishes it."""
    theirs = {ours: name for name, ours in _torchvision_names().items()}
    state = {}
    for key, value in module.state_dict().items():
        name, _, leaf = key.rpartition(".")
        state[f"{theirs[name]}.{leaf}"] = value
    return state


def test_reads_the_weights_that_torchvision_publishes(tmp_path):
    name = "ssdlite_mobilenet_v3_large_64"
    module = create_model(name, num_classes=90, seed=3).module
    state = published(module)
    # From torchvision's documentation of the state dict: cut behind the expansion of C4.
    shapes = {
        "backbone.features.0.0.0.weight": (16, 3, 3, 3),
        "backbone.features.0.4.block.2.fc1.weight": (24, 72, 1, 1),
        "backbone.features.0.13.0.weight": (672, 112, 1, 1),
        "backbone.features.1.0.1.0.weight": (672, 1, 5, 5),
        "backbone.features.1.0.3.0.weight": (80, 672, 1, 1),
        "backbone.features.1.1.block.0.0.weight": (480, 80, 1, 1),
        "backbone.features.1.3.0.weight": (480, 80, 1, 1),
        "backbone.extra.0.0.0.weight": (256, 480, 1, 1),
        "backbone.extra.3.2.0.weight": (128, 64, 1, 1),
        "head.classification_head.module_list.0.0.0.weight": (672, 1, 3, 3),
        "head.classification_head.module_list.0.1.weight": (546, 672, 1, 1),
        "head.regression_head.module_list.5.1.bias": (24,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    path = tmp_path / "ssdlite320_mobilenet_v3_large_coco.pth"
    torch.save(state, path)
    created = create_model(name, weights=path)
    assert created.module.num_classes == 90
    assert created.preprocessing.fit == "stretch"
    assert created.preprocessing.mean == (0.5, 0.5, 0.5)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for found, expected in zip(created.module(x), module(x), strict=True):
            assert torch.equal(found, expected)


def test_weights_of_other_classes_are_told_apart(tmp_path):
    from tvm_mobilenet.models.weights import load_weights

    name = "ssdlite_mobilenet_v3_large_64"
    path = tmp_path / "w.pth"
    torch.save(create_model(name, num_classes=3).module.state_dict(), path)
    with pytest.raises(WeightsError, match="they tell 3 classes apart, but 5 are asked for"):
        load_weights(path, new_module(get_model_spec(name), 5))


def test_a_wrong_name_is_refused():
    with pytest.raises(SpecError, match=re.escape("resolution is 16")):
        get_model_spec("ssdlite_mobilenet_v3_large_16")
