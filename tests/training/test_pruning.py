"""Channels taken out of trained weights: what is left is trained, saved, compiled and chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tvm_mobilenet.errors import SpecError, UsageError, WeightsError
from tvm_mobilenet.exploration.candidates import list_candidates
from tvm_mobilenet.export import export_onnx
from tvm_mobilenet.models.weight_file import describe_weights
from tvm_mobilenet.models.weights import create_model
from tvm_mobilenet.training.pruning import prune
from tvm_mobilenet.training.train import train
from tvm_mobilenet.verify.report import verify
from tvm_mobilenet.workflow import compile_model

NAME = "mobilenet_v1_0.25_32"
SHARE = 0.6


def macs(module: nn.Module, side: int) -> int:
    """Count multiply-adds by what each layer computes."""
    total = 0

    def count(layer: nn.Module, _inputs: object, out: torch.Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += weight.numel() * (out.shape[2] * out.shape[3] if out.ndim == 4 else 1)

    hooks = [
        child.register_forward_hook(count)
        for child in module.modules()
        if isinstance(child, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        module(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(
    "name",
    [NAME, "mobilenet_v2_0.5_32", "mobilenet_v3_small_0.75_32", "lraspp_mobilenet_v3_large_32"],
)
def test_what_is_left_is_what_was_asked_for_in_multiples_of_eight(name):
    created = create_model(name, num_classes=10)
    found = prune(created.module, 32, SHARE)
    assert found.macs_before == created.spec.macs(10) == macs(created.module, 32)
    assert found.macs == macs(found.module, 32)
    assert 0.8 * SHARE < found.share <= SHARE
    for child in found.module.modules():
        if isinstance(child, nn.Conv2d) and child.out_channels != 10:
            assert child.out_channels % 8 == 0
    # The original has lost nothing.
    assert macs(created.module, 32) == found.macs_before


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights trained for two epochs, and the same with channels taken out, for two more."""
    folder = tmp_path_factory.mktemp("pruned")
    whole, less = folder / "whole.safetensors", folder / "less.safetensors"
    train(NAME, "digits", out=whole, epochs=3)
    train(NAME, "digits", out=less, epochs=3, weights=whole, prune=SHARE)
    return whole, less


def test_the_file_says_how_much_is_left_and_is_smaller(pruned):
    whole, less = pruned
    description = describe_weights(less)
    assert description is not None
    assert description.pruned == pytest.approx(SHARE, abs=0.12)
    assert less.stat().st_size < 0.8 * whole.stat().st_size
    assert b'"pruned"' not in whole.read_bytes()
    accuracy = (description.training or {})["held_out_accuracy"]
    assert accuracy > 0.5  # ten classes


def test_it_is_exported_compiled_and_verified(pruned, tmp_path: Path):
    _, less = pruned
    exported = tmp_path / "less.onnx"
    export_onnx(NAME, weights=less, out=exported)
    artifact = compile_model(NAME, weights=less, out=tmp_path / "out", use_logs=False)
    full = create_model(NAME).spec.macs(10)
    assert sum(layer.macs for layer in artifact.manifest.layers) < 0.62 * full
    report = verify(tmp_path / "out", inputs=2, weights=less, threads=1)
    assert {found.reference for found in report.comparisons} == {"onnxruntime", "pytorch"}
    assert report.is_within


def test_it_is_a_candidate_beside_the_names(pruned, tmp_path: Path):
    _, less = pruned
    (tmp_path / "less.safetensors").write_bytes(less.read_bytes())
    table = tmp_path / "accuracy.csv"
    table.write_text(f"model,accuracy\n{NAME},97.5\nless.safetensors,96.0\n")
    whole, found = list_candidates(accuracy=table)
    assert found.weights == tmp_path / "less.safetensors"
    assert found.model.startswith(f"{NAME}@less.safetensors-")
    module = create_model(NAME, weights=less).module
    assert found.macs == macs(module, 32) < whole.macs
    assert found.weight_bytes < 0.3 * whole.weight_bytes  # it has 10 classes, not 1000


def test_widths_that_do_not_fit_each_other_are_refused(pruned, tmp_path: Path):
    _, less = pruned
    state = safetensors.torch.load_file(less)
    state["blocks.3.pointwise.conv.weight"] = torch.zeros(48, 32, 1, 1)
    from safetensors import safe_open

    with safe_open(less, framework="pt") as file:
        metadata = file.metadata()
    bad = tmp_path / "bad.safetensors"
    safetensors.torch.save_file(state, bad, metadata)
    with pytest.raises(WeightsError, match=r"do not fit each other"):
        create_model(NAME, weights=bad)


def test_wrong_requests_are_refused_before_training(pruned, tmp_path: Path):
    whole, _ = pruned
    out = tmp_path / "out.safetensors"
    for share in (0.0, 1.0, 1.5, -1.0):
        with pytest.raises(SpecError, match="between 0 and 1"):
            train(NAME, "digits", out=out, epochs=1, weights=whole, prune=share)
    with pytest.raises(SpecError, match="choose a larger share"):
        train(NAME, "digits", out=out, epochs=1, weights=whole, prune=0.001)
    with pytest.raises(UsageError, match="pruning needs both"):
        train(NAME, "digits", out=out, epochs=1, prune=0.5)
    with pytest.raises(UsageError, match="pruning needs both"):
        train(NAME, "digits", out=out, epochs=1, weights=whole)
    assert list(tmp_path.iterdir()) == []
