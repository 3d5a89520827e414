"""Weights in the layouts of torchvision and timm.

The digests below were taken from the state dicts of torchvision 0.28 and timm 1.0.31 themselves:
every key with its shape, sorted, batch counters left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvm_mobilenet.errors import WeightsError
from tvm_mobilenet.models.bottleneck import conv_bn_act, pad_like_tensorflow
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.publishers import IMAGENET_MEAN, Publisher
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weights import create_model, load_weights, new_module

# (publisher, its name of the model, ours, number of tensors, digest)
PUBLISHED = [
    ("torchvision", "mobilenet_v2", "mobilenet_v2_1.0_224", 262, "d613ea65450d5318"),
    ("torchvision", "mobilenet_v3_large", "mobilenet_v3_large_1.0_224", 266, "2af4cb8a399e8d82"),
    ("torchvision", "mobilenet_v3_small", "mobilenet_v3_small_1.0_224", 210, "c5aae8a56256fe35"),
    ("timm", "mobilenetv2_100", "mobilenet_v2_1.0_224", 262, "5a95ee06712e31e9"),
    ("timm", "mobilenetv2_140", "mobilenet_v2_1.4_224", 262, "cd6c57550c255624"),
    ("timm", "mobilenetv2_050", "mobilenet_v2_0.5_224", 262, "36938b01e146a8ca"),
    ("timm", "mobilenetv3_large_075", "mobilenet_v3_large_0.75_224", 266, "6e3daee2dbd48424"),
    ("timm", "mobilenetv3_large_100", "mobilenet_v3_large_1.0_224", 266, "3dba8ad57b7701f1"),
    ("timm", "mobilenetv3_small_050", "mobilenet_v3_small_0.5_224", 210, "4815df373659835a"),
    ("timm", "mobilenetv3_small_075", "mobilenet_v3_small_0.75_224", 210, "b82ba8b91b66a23c"),
    ("timm", "mobilenetv3_small_100", "mobilenet_v3_small_1.0_224", 210, "fefefaa6b0100de1"),
    (
        "timm",
        "tf_mobilenetv3_large_minimal_100",
        "mobilenet_v3_large_minimalistic_1.0_224",
        234,
        "a13eb42ce831ebe8",
    ),
    (
        "timm",
        "tf_mobilenetv3_small_minimal_100",
        "mobilenet_v3_small_minimalistic_1.0_224",
        174,
        "02a55ceed308c43c",
    ),
    ("timm", "mobilenetv4_conv_small", "mobilenet_v4_conv_small_224", 232, "686b0237589be166"),
    ("timm", "mobilenetv4_conv_medium", "mobilenet_v4_conv_medium_224", 387, "750bfbd73dae04ed"),
    ("timm", "mobilenetv4_conv_large", "mobilenet_v4_conv_large_224", 512, "cc054566f237840c"),
]


def publisher_of(module: Network, name: str) -> Publisher:
    (publisher,) = (p for p in module.publishers() if p.name == name)
    return publisher


def in_layout_of(publisher: Publisher, module: Network) -> dict[str, torch.Tensor]:
    """Rename a module's state to the publisher's keys; timm's V3 head is a 1x1 convolution."""
    theirs = {ours: name for name, ours in publisher.module_names.items()}
    state = {}
    for key, value in module.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        if publisher.name == "timm" and key == "head.dense.weight":
            value = value[:, :, None, None]
        state[f"{theirs[owner]}.{leaf}"] = value
    return state


@pytest.mark.parametrize(("name", "theirs", "ours", "count", "digest"), PUBLISHED)
def test_keys_and_shapes_are_those_that_are_published(name, theirs, ours, count, digest):
    with torch.device("meta"):
        module = new_module(get_model_spec(ours), 1000)
    state = in_layout_of(publisher_of(module, name), module)
    lines = sorted(
        f"{key} {tuple(value.shape)}"
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    )
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest, theirs


def drawn(name: str, eps: float) -> Network:
    module = create_model(name, num_classes=5, seed=2).module
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = eps
    return module


def logits(module: nn.Module) -> np.ndarray:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return module(x).numpy()


@pytest.mark.parametrize(
    ("name", "layout", "eps"),
    [
        ("mobilenet_v2_0.35_64", "torchvision", 1e-5),
        ("mobilenet_v2_0.35_64", "timm", 1e-5),
        ("mobilenet_v3_small_0.75_64", "torchvision", 1e-3),
        ("mobilenet_v3_small_0.75_64", "timm", 1e-5),
        ("mobilenet_v4_conv_small_64", "timm", 1e-5),
    ],
)
def test_reads_a_publishers_layout_with_its_epsilon_and_preprocessing(tmp_path, name, layout, eps):
    source = drawn(name, eps)
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": in_layout_of(publisher_of(source, layout), source)}, path)
    module = new_module(get_model_spec(name), 5)
    assert load_weights(path, module).layout == layout
    np.testing.assert_array_equal(logits(module), logits(source))
    created = create_model(name, weights=path)
    assert created.module.num_classes == 5
    assert created.preprocessing.mean == IMAGENET_MEAN
    assert created.preprocessing.interpolation == ("bicubic" if layout == "timm" else "bilinear")
    assert (created.preprocessing.resize, created.preprocessing.crop) == (73, 64)


def save_timm(folder: Path, file_name: str, name: str = "mobilenet_v3_small_0.75_64") -> Path:
    source = drawn(name, 1e-3)
    state = in_layout_of(publisher_of(source, "timm"), source)
    path = folder / file_name
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def test_tensorflows_weights_are_told_by_their_name(tmp_path):
    path = save_timm(tmp_path, "tf_mobilenetv3_small_075-da427f52.safetensors")
    created = create_model("mobilenet_v3_small_0.75_64", weights=path)
    norms = [m for m in created.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-3}
    assert created.preprocessing.mean == (0.5, 0.5, 0.5)
    reference = drawn("mobilenet_v3_small_0.75_64", 1e-3)
    assert np.abs(logits(created.module) - logits(reference)).max() > 1e-3
    pad_like_tensorflow(reference, True)
    np.testing.assert_array_equal(logits(created.module), logits(reference))


def test_a_config_beside_the_weights_says_what_they_are(tmp_path):
    path = save_timm(tmp_path, "model.safetensors")
    config = {
        "architecture": "tf_mobilenetv3_small_075",
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [1, 1, 1],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "input_size": [3, 224, 224],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    created = create_model("mobilenet_v3_small_0.75_64", weights=path)
    prepared = created.preprocessing
    assert (prepared.mean, prepared.std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    assert (prepared.resize, prepared.crop, prepared.interpolation) == (64, 64, "bicubic")
    assert {m.eps for m in created.module.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        ('{"pretrained_cfg": {"crop_pct": 0}}', "cannot be understood"),
        ('{"pretrained_cfg": {"mean": "grey"}}', "cannot be understood"),
        ('{"pretrained_cfg": {"interpolation": "area"}}', "cannot be understood"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, text, match):
    path = save_timm(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=match) as caught:
        create_model("mobilenet_v3_small_0.75_64", weights=path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_of_something_else_is_left_alone(tmp_path):
    path = save_timm(tmp_path, "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "tf_other", "layers": 3}')
    created = create_model("mobilenet_v3_small_0.75_64", weights=path)
    assert {m.eps for m in created.module.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def test_another_alpha_is_named(tmp_path):
    path = save_timm(tmp_path, "model.safetensors")
    with pytest.raises(WeightsError, match=r"for alpha 0\.75, but the model has alpha 1"):
        create_model("mobilenet_v3_small_1.0_64", weights=path)


def test_another_family_is_refused(tmp_path):
    path = save_timm(tmp_path, "model.safetensors")
    with pytest.raises(WeightsError, match="do not belong to this model"):
        create_model("mobilenet_v2_1.0_64", weights=path)


@pytest.mark.parametrize("size", [32, 33, 34])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_like_tensorflow_is_onnx_same_upper(size, kernel):
    module = conv_bn_act(3, 4, None, kernel=kernel, stride=2).get_submodule("conv")
    assert isinstance(module, nn.Conv2d)
    pad_like_tensorflow(module, True)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(module.weight.detach().numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(module(x).numpy(), expected, atol=1e-5)
