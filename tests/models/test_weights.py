from __future__ import annotations

import json
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tvm_mobilenet.errors import OutputError, SpecError, UsageError, WeightsError
from tvm_mobilenet.models.mobilenet_v1 import BATCH_NORM_EPS, MobileNetV1
from tvm_mobilenet.models.network import Network
from tvm_mobilenet.models.preprocess import default_preprocessing
from tvm_mobilenet.models.spec import get_model_spec
from tvm_mobilenet.models.weight_file import METADATA_KEY, WeightsDescription, describe_weights
from tvm_mobilenet.models.weights import (
    create_model,
    load_weights,
    new_module,
    random_weights,
    save_weights,
)

NAME = "mobilenet_v1_0.25_32"
TIMM_BATCH_NORM_EPS = 1e-5  # torch's default, which is not in timm's files
DESCRIPTION = WeightsDescription(
    model=NAME,
    num_classes=3,
    class_names=("cat", "dog", "Ωmega"),
    preprocessing=default_preprocessing(32),
    batch_norm_eps=BATCH_NORM_EPS,
    training={"seed": 4},
)


def drawn(seed: int = 0, *, name: str = NAME, num_classes: int = 3) -> Network:
    return create_model(name, num_classes=num_classes, seed=seed).module


def logits(module: nn.Module, resolution: int = 32) -> np.ndarray:
    x = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return module(x).numpy()


def to_timm(module: Network) -> dict[str, torch.Tensor]:
    """Rename a state dict to the keys of timm's `mobilenetv1_100`, counters included."""
    theirs = {ours: name for name, ours in MobileNetV1.timm_names().items()}
    renamed = {}
    for key, value in module.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        renamed[f"{theirs[owner]}.{leaf}"] = value
    return renamed


@pytest.fixture
def ours(tmp_path):
    return save_weights(drawn(), tmp_path / "w.safetensors", DESCRIPTION)


# Reading and writing


def test_what_is_saved_is_read_back(ours):
    module = new_module(get_model_spec(NAME), 3)
    loaded = load_weights(ours, module)
    np.testing.assert_array_equal(logits(module), logits(drawn()))
    assert loaded.layout == "tvm_mobilenet"
    assert loaded.description == DESCRIPTION
    assert loaded.class_names == ("cat", "dog", "Ωmega")
    assert loaded.preprocessing == default_preprocessing(32)
    assert loaded.num_classes == 3
    assert len(loaded.sha256) == 64
    assert not module.training


def test_description_is_read_without_the_tensors(ours, tmp_path):
    assert describe_weights(ours) == DESCRIPTION
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert describe_weights(tmp_path / "foreign.safetensors") is None
    assert describe_weights(tmp_path / "any.pth") is None


def test_the_same_weights_give_the_same_bytes(tmp_path):
    files = {
        save_weights(drawn(), tmp_path / f"{i}.safetensors", DESCRIPTION).read_bytes()
        for i in range(4)
    }
    assert len(files) == 1


def test_reads_pth_plain_or_wrapped(tmp_path):
    state = drawn().state_dict()
    for index, content in enumerate(
        (
            state,
            {"state_dict": state, "epoch": 3},
            {"model": {f"module.{key}": value for key, value in state.items()}},
        )
    ):
        path = tmp_path / f"{index}.pth"
        torch.save(content, path)
        module = new_module(get_model_spec(NAME), 3)
        assert load_weights(path, module).description is None
        np.testing.assert_array_equal(logits(module), logits(drawn()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_reads_timms_layout_with_its_epsilon(suffix, tmp_path):
    source = drawn()
    for norm in source.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = TIMM_BATCH_NORM_EPS
    path = tmp_path / f"timm{suffix}"
    if suffix == ".pth":
        torch.save(to_timm(source), path)
    else:
        safetensors.torch.save_file(to_timm(source), path, metadata={"format": "pt"})
    module = new_module(get_model_spec(NAME), 3)
    assert load_weights(path, module).layout == "timm"
    np.testing.assert_array_equal(logits(module), logits(source))


def test_timm_names_are_those_that_timm_publishes():
    names = MobileNetV1.timm_names()
    assert names["conv_stem"] == "stem.conv"
    assert names["bn1"] == "stem.bn"
    assert names["blocks.0.0.conv_dw"] == "blocks.0.depthwise.conv"
    assert names["blocks.1.1.bn2"] == "blocks.2.pointwise.bn"
    assert names["blocks.3.5.conv_pw"] == "blocks.10.pointwise.conv"
    assert names["blocks.4.1.bn1"] == "blocks.12.depthwise.bn"
    assert len(names) == 3 + 4 * 13


def test_half_precision_weights_are_widened(tmp_path):
    state = {key: value.half() for key, value in drawn().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    module = new_module(get_model_spec(NAME), 3)
    load_weights(tmp_path / "w.safetensors", module)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert np.abs(logits(module) - logits(drawn())).max() < 0.1


def test_eps_travels_with_the_weights(tmp_path):
    description = DESCRIPTION.model_copy(update={"batch_norm_eps": 0.5})
    path = save_weights(drawn(), tmp_path / "w.safetensors", description)
    module = new_module(get_model_spec(NAME), 3)
    load_weights(path, module)
    assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {0.5}


# Refusals


def refused(path, match, *, name=NAME, num_classes=3):
    with pytest.raises(WeightsError, match=match) as caught:
        load_weights(path, new_module(get_model_spec(name), num_classes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 30, 2000, -1])
def test_truncated_safetensors(ours, kept):
    ours.write_bytes(ours.read_bytes()[:kept])
    refused(ours, "w.safetensors: the file is damaged or cut short")


@pytest.mark.parametrize("kept", [0, 4, 1000, -1000])
def test_truncated_pth(tmp_path, kept):
    path = tmp_path / "w.pth"
    torch.save(drawn().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "w.pth: ")


def test_garbage_of_either_kind(tmp_path):
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"garbage{suffix}"
        path.write_bytes(np.random.default_rng(0).bytes(5000))
        refused(path, "garbage")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_named_and_never_run(tmp_path, legacy):
    path, made = tmp_path / "w.pth", tmp_path / "made-by-the-pickle"
    torch.save(
        {"stem.conv.weight": Malicious(made)}, path, _use_new_zipfile_serialization=not legacy
    )
    refused(path, "a pickle can run code, but it holds posix.mkdir")
    assert not made.exists()


def test_bare_pickle_with_code(tmp_path):
    path, made = tmp_path / "w.pth", tmp_path / "made-by-the-pickle"
    path.write_bytes(pickle.dumps(Malicious(made)))
    refused(path, "a pickle can run code")
    assert not made.exists()


def test_pth_without_a_state_dict(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "found no state dict")


def test_missing_file_folder_and_unknown_suffix(tmp_path):
    refused(tmp_path / "none.pth", "there is no such file")
    refused(tmp_path / "none.safetensors", "there is no such file")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", "it is a folder")
    refused(tmp_path / "w.h5", "'.h5' is no format that is read")


def test_another_alpha_is_named(ours):
    message = refused(ours, "they are for alpha 0.25", name="mobilenet_v1_0.5_32")
    assert "the model has alpha 0.5" in message


def test_another_alpha_in_timms_layout_is_named(tmp_path):
    torch.save(to_timm(drawn(name="mobilenet_v1_0.5_32")), tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "they are for alpha 0.5, but the model has alpha 0.25")


def test_another_number_of_classes_is_named(ours):
    refused(ours, "3 classes apart, but 7 are asked for", num_classes=7)


def test_missing_and_left_over_keys_are_named(tmp_path):
    state = drawn().state_dict()
    state["stem.convolution.weight"] = state.pop("stem.conv.weight")
    torch.save(state, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth", "missing: stem.conv.weight")
    assert "left over: stem.convolution.weight" in message


def test_many_wrong_keys_are_counted(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", r"missing: stem.conv.weight, .* and 133 more; left over: a")


def test_wrong_shapes_are_named(tmp_path):
    state = drawn().state_dict()
    state["blocks.3.depthwise.conv.weight"] = torch.zeros(32, 1, 5, 5)
    torch.save(state, tmp_path / "w.pth")
    refused(
        tmp_path / "w.pth",
        r"blocks.3.depthwise.conv.weight is \(32, 1, 5, 5\) and should be \(32, 1, 3, 3\)",
    )


def test_timms_variant_with_a_head_convolution_is_another_network(tmp_path):
    state = to_timm(drawn())
    state["conv_head.weight"] = torch.zeros(1024, 256, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "left over: conv_head.weight")


def test_integers_and_infinities_are_refused(tmp_path):
    state = drawn().state_dict()
    torch.save(
        state | {"classifier.bias": torch.zeros(3, dtype=torch.int8)}, tmp_path / "integers.pth"
    )
    refused(tmp_path / "integers.pth", "classifier.bias is int8")
    torch.save(
        state | {"classifier.bias": torch.tensor([0, float("nan"), 0])}, tmp_path / "nan.pth"
    )
    refused(tmp_path / "nan.pth", "classifier.bias holds infinities or NaN")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"format_version": 99}, "format version 99, but this program reads 1"),
        ({"format_version": 1}, "description, model: Field required"),
        ([], "no JSON object"),
    ],
)
def test_another_description_is_refused(tmp_path, fields, match):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(
        drawn().state_dict(), path, metadata={METADATA_KEY: json.dumps(fields)}
    )
    refused(path, match)


# Writing


def test_only_safetensors_is_written(tmp_path):
    with pytest.raises(UsageError, match="weights are written as"):
        save_weights(drawn(), tmp_path / "w.pth", DESCRIPTION)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(ours):
    before = ours.read_bytes()
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old_limit[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*w\.safetensors"):
            save_weights(drawn(1), ours, DESCRIPTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert ours.read_bytes() == before
    assert [path.name for path in ours.parent.iterdir()] == ["w.safetensors"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_weights(drawn(), tmp_path / "file" / "w.safetensors", DESCRIPTION)


# Random weights


def test_random_weights_follow_the_seed():
    np.testing.assert_array_equal(logits(drawn(3)), logits(drawn(3)))
    assert np.abs(logits(drawn(3)) - logits(drawn(4))).max() > 0.1


def test_random_weights_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    states = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            states.append(safetensors.torch.save(drawn(5).state_dict()))
    finally:
        torch.set_num_threads(threads)
    assert states[0] == states[1]


@pytest.mark.parametrize("name", [NAME, "mobilenet_v1_0.1_64", "mobilenet_v1_1.0_32"])
def test_random_weights_keep_activations_alive_to_the_last_layer(name):
    module = drawn(name=name, num_classes=10)
    resolution = get_model_spec(name).resolution
    shares: list[tuple[float, float]] = []
    for act in module.modules():
        if isinstance(act, nn.ReLU6):
            act.register_forward_hook(
                lambda _m, _i, out: shares.append(
                    ((out == 0).float().mean().item(), (out == 6).float().mean().item())
                )
            )
    x = torch.randn(16, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = module(x)
    assert len(shares) == 27
    assert all(0.1 < zeros < 0.6 for zeros, _ in shares)
    assert all(sixes < 0.1 for _, sixes in shares)
    assert max(sixes for _, sixes in shares) > 0.001
    assert found.std(0).mean() > 0.1, "the logits depend on the picture"


def test_random_weights_leave_the_module_ready_for_inference():
    module = new_module(get_model_spec(NAME), 3)
    random_weights(module, 32, 0)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not module.training
    assert {m.momentum for m in norms} == {3e-4}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(m.running_var is not None and m.running_var.dtype == torch.float32 for m in norms)


# create_model


def test_without_weights_says_that_they_are_random():
    created = create_model("mobilenet_v1_0.25_64", seed=7)
    assert created.origin.is_random
    assert created.origin.weights == "random (seed 7)"
    assert created.origin.num_classes == 1000
    assert created.preprocessing == default_preprocessing(64)
    assert created.class_names is None


def test_takes_the_number_of_classes_from_the_file(ours):
    created = create_model(NAME, weights=ours)
    assert created.module.num_classes == 3
    assert created.class_names == DESCRIPTION.class_names
    assert created.origin.weights == "w.safetensors"
    assert not created.origin.is_random
    assert created.origin.weights_sha256 is not None


def test_weights_serve_another_resolution_with_scaled_preprocessing(ours):
    created = create_model("mobilenet_v1_0.25_64", weights=ours)
    assert created.preprocessing.crop == 64
    assert created.preprocessing.resize == 2 * DESCRIPTION.preprocessing.resize


def test_timm_weights_get_timms_preprocessing(tmp_path):
    torch.save(to_timm(drawn()), tmp_path / "w.pth")
    created = create_model(NAME, weights=tmp_path / "w.pth")
    assert created.preprocessing.interpolation == "bicubic"
    assert created.preprocessing.mean == (0.5, 0.5, 0.5)


def test_zero_classes_are_refused():
    with pytest.raises(SpecError, match="number of classes is 0"):
        create_model(NAME, num_classes=0)
