from __future__ import annotations

import pytest
import torch
from torch import nn

from tvm_mobilenet.models.mobilenet_v1 import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, MobileNetV1
from tvm_mobilenet.models.mobilenet_v1_table import BLOCKS, channels
from tvm_mobilenet.models.preprocess import default_preprocessing
from tvm_mobilenet.models.spec import MODELS, ModelSpec, get_model_spec
from tvm_mobilenet.models.weight_file import WeightsDescription
from tvm_mobilenet.models.weights import new_module, save_weights


def counted(module: nn.Module, resolution: int) -> tuple[int, int]:
    """Count parameters, and multiply-adds from the shapes that a forward pass meets."""
    macs = 0

    def count(layer, _inputs, output):
        nonlocal macs
        positions = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        macs += layer.weight.numel() * positions

    hooks = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    # On the meta device shapes are computed and numbers are not.
    module.to("meta").eval()(torch.empty(1, 3, resolution, resolution, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(parameter.numel() for parameter in module.parameters()), macs


@pytest.mark.parametrize("name", MODELS)
def test_module_has_the_parameters_and_multiply_adds_of_the_table(name):
    spec = MODELS[name]
    with torch.device("meta"):
        module = new_module(spec, 1000)
    assert counted(module, spec.resolution) == (spec.params(1000), spec.macs(1000))


@pytest.mark.parametrize("alpha", [0.1, 0.35, 1.25])
@pytest.mark.parametrize("resolution", [32, 33, 100])
@pytest.mark.parametrize("classes", [1, 10, 1001])
def test_odd_sizes_count_and_compute(alpha, resolution, classes):
    spec = ModelSpec(family="mobilenet_v1", alpha=alpha, resolution=resolution)
    assert counted(new_module(spec, classes), resolution) == (
        spec.params(classes),
        spec.macs(classes),
    )


def test_layer_table_has_the_shapes_that_torch_computes():
    spec = get_model_spec("mobilenet_v1_0.25_50")
    module = new_module(spec, 10).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name, child in module.named_modules():
        child.register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape)})
        )
    module(torch.zeros(1, 3, 50, 50))
    for layer in spec.layers(10):
        expected: tuple[int, ...] = (1, layer.out_channels)
        if layer.kind != "dense":
            expected += (layer.out_size, layer.out_size)
        assert seen[layer.name] == expected


def test_body_is_that_of_the_paper():
    assert [stride for _, stride in BLOCKS].count(2) == 4
    assert [width for width, _ in BLOCKS] == [64] + [128] * 2 + [256] * 2 + [512] * 6 + [1024] * 2


@pytest.mark.parametrize(
    ("width", "alpha", "expected"),
    [(32, 0.25, 8), (32, 0.1, 8), (128, 0.1, 12), (64, 0.35, 22), (1024, 1.25, 1280)],
)
def test_widths_are_rounded_as_tf_slim_does(width, alpha, expected):
    assert channels(width, alpha) == expected


def test_batch_norms_follow_the_recipe():
    norms = [m for m in MobileNetV1(0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 27
    assert {(m.eps, m.momentum) for m in norms} == {(BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)}


def test_dropout_works_on_the_pooled_features_and_in_training_only():
    torch.manual_seed(0)
    module = MobileNetV1(0.25, num_classes=5, dropout=0.999)
    nn.init.constant_(module.classifier.bias, 3.0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    x = torch.randn(8, 3, 32, 32)
    module.dropout.train()
    dropped = module(x)
    assert (dropped == 3.0).any(), "all features dropped leaves the bias"
    module.eval()
    assert torch.equal(module(x), module(x))


def test_size_on_disk_is_the_files_without_its_header(tmp_path):
    spec = get_model_spec("mobilenet_v1_0.25_32")
    description = WeightsDescription(
        model=spec.name,
        num_classes=10,
        preprocessing=default_preprocessing(32),
        batch_norm_eps=1e-3,
    )
    path = save_weights(new_module(spec, 10), tmp_path / "w.safetensors", description)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == spec.size_bytes(10)
