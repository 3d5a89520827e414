"""float16 on an OpenCL device: the numbers where it has half, else the code and the refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.opencl.test_schedules import WORKLOADS, run
from tvm_mobilenet._tvm import IRModule
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.errors import DeviceError, SpecError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.predict import predict_model
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.schedule.mali import families
from tvm_mobilenet.schedule.workload import Epilogue, PoolWorkload
from tvm_mobilenet.targets import TargetSpec, load_target
from tvm_mobilenet.tuning.reference import make_operands, output_shape, reference
from tvm_mobilenet.verify import verify
from tvm_mobilenet.workflow import compile_model

pytestmark = pytest.mark.opencl

PLAIN = Epilogue().activation
UNIT = 2.0**-11
"""Unit roundoff of float16."""


def with_half(*on_cpu: str) -> TargetSpec:
    target = load_target("opencl-generic")
    assert target.gpu is not None
    gpu = target.gpu.model_copy(update={"has_fp16": True, "on_cpu": on_cpu})
    return target.model_copy(update={"gpu": gpu})


@pytest.fixture(scope="module")
def half_device(device: Any) -> Any:
    from tvm_mobilenet.opencl.runtime import describe

    found = describe().devices[0]
    if not found.float16:
        pytest.skip(f"{found.name} has no half; test_drivers.py runs this on one that has")
    return device


@pytest.fixture(scope="module")
def in_half(colour_onnx: Path, device: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("half") / "colour"
    return compile_model(colour_onnx, target=with_half(), out=out, dtype="float16")


def opencl_source(artifact: Artifact) -> str:
    import tvm

    (host,) = tvm.runtime.load_module(str(artifact.library_path)).imports
    return "".join(one.inspect_source() for one in host.imports if one.kind == "opencl")


@pytest.mark.parametrize("accumulate", ["float32", "float16"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: f"{type(w).__name__}-{w.macs}")
def test_a_family_is_right_in_half(half_device: Any, workload: Any, accumulate: Any):
    """Errors stay within the bound of a sum: n u for n terms in float16, u for one rounding."""
    workload = replace(workload, dtype="float16")
    gpu = with_half().gpu
    assert gpu is not None
    plan = families.compute_plan(workload, gpu, accumulate)
    made = make_operands(workload)
    rounded: dict[str, Any] = {
        name: None if (array := getattr(made, name)) is None else array.astype("float16")
        for name in ("x", "weights", "bias", "residual")
    }
    widened: dict[str, Any] = {
        name: None if array is None else array.astype("float32") for name, array in rounded.items()
    }
    operands = replace(made, **widened)
    inputs = [rounded["x"]]
    if rounded["weights"] is not None:
        assert operands.weights is not None
        inputs.append(families.pack(operands.weights, plan).astype("float16"))
    if rounded["bias"] is not None:
        inputs.append(rounded["bias"].astype(getattr(plan, "accumulate", "float32")))
    if rounded["residual"] is not None:
        inputs.append(rounded["residual"])
    function = families.write(workload, plan).with_attr("global_symbol", "main")
    shape = output_shape(workload)
    found = run(half_device, IRModule({"main": function}), inputs, shape, "float16")
    wanted = reference(workload, operands)
    terms = 2 if accumulate == "float32" or operands.weights is None else _terms(workload)
    bound = terms * UNIT * np.maximum(_summed(workload, rounded), 2.0**-14)
    # Half as much again for what activations do to an error: hard-swish has a slope of up to 1.5.
    assert (np.abs(found - wanted) <= 1.5 * bound).all()


def _summed(workload: Any, rounded: dict[str, Any]) -> Any:
    """Return the sum of the sizes of what each output is summed of."""
    sizes: dict[str, Any] = {
        name: None if array is None else np.abs(array.astype("float32"))
        for name, array in rounded.items()
    }
    if isinstance(workload, PoolWorkload):
        return reference(workload, replace(make_operands(workload), **sizes))
    bare = replace(workload.epilogue, activation=PLAIN, low=-np.inf, high=np.inf)
    plain = replace(workload, epilogue=bare)
    return reference(plain, replace(make_operands(workload), **sizes))


def _terms(workload: Any) -> int:
    kernel = getattr(workload, "kernel", None)
    if kernel is None:
        return int(workload.depth) + 2
    return kernel[0] * kernel[1] * workload.in_channels // workload.groups + 2


@pytest.mark.parametrize("accumulate", ["float32", "float16"])
def test_a_model_in_half_agrees_with_onnx_runtime(
    half_device: Any, colour_onnx: Path, tmp_path: Path, opencl_agent: Any, accumulate: str
):
    artifact = compile_model(
        colour_onnx, target=with_half(), out=tmp_path / "m", dtype="float16", accumulate=accumulate
    )
    assert (artifact.manifest.dtype, artifact.manifest.accumulate) == ("float16", accumulate)
    report = verify(artifact.path, inputs=3, drift=True)
    assert report.is_within
    assert report.drift is not None
    assert report.drift.first_departed is None
    board = connect(opencl_agent.address, timeout_s=60)
    assert verify(artifact.path, inputs=2, device=board).is_within


def test_the_processor_computes_its_share_of_a_model_in_half(
    half_device: Any, colour_onnx: Path, tmp_path: Path
):
    target = with_half("dense", "pool")
    artifact = compile_model(colour_onnx, target=target, out=tmp_path / "m", dtype="float16")
    assert any(layer.kernel.startswith("cpu_") for layer in artifact.manifest.layers)
    assert verify(artifact.path, inputs=3).is_within


def test_kernels_load_and_store_halves(in_half: Artifact):
    source = opencl_source(in_half)
    assert "#pragma OPENCL EXTENSION cl_khr_fp16 : enable" in source
    assert "__global half* restrict" in source
    assert "convert_float" in source  # sums are in float32, unless something else is said
    families_found = {layer.family for layer in in_half.manifest.layers}
    assert families_found & {"conv", "pointwise", "dense"}


def test_a_device_without_half_says_so(in_half: Artifact):
    from tvm_mobilenet.opencl.runtime import describe

    if describe().devices[0].float16:
        pytest.skip("this device has half")
    with pytest.raises(DeviceError, match="computes in float16, which device") as hit:
        LocalExecutor(in_half)
    assert hit.value.exit_code == 4
    assert "\n" not in str(hit.value)


def test_a_target_without_half_refuses(colour_onnx: Path, tmp_path: Path):
    with pytest.raises(SpecError, match=r"gpu.has_fp16 is false") as hit:
        compile_model(colour_onnx, target="opencl-generic", out=tmp_path / "m", dtype="float16")
    assert hit.value.exit_code == 2


def test_half_is_predicted_at_twice_the_rate_and_half_the_bytes(colour_onnx: Path):
    wide = predict_model(colour_onnx, target="rk3588-mali")
    half = predict_model(colour_onnx, target="rk3588-mali", dtype="float16")
    for one, other in zip(wide, half, strict=True):
        assert other.macs == one.macs
        assert other.compute_ms == pytest.approx(one.compute_ms / 2)
        assert other.bytes < 0.75 * one.bytes
    with pytest.raises(SpecError, match=r"gpu.has_fp16 is false"):
        predict_model(colour_onnx, target="opencl-generic", dtype="float16")
