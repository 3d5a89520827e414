"""A compiled model on an OpenCL device, here and on a board."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.opencl.modules import BUFFER, Kernel, module_bytes
from tests.rpc.processes import AgentProcess
from tvm_mobilenet.artifact import Artifact
from tvm_mobilenet.boards.archive import AGENT
from tvm_mobilenet.errors import DeviceError
from tvm_mobilenet.executor import LocalExecutor
from tvm_mobilenet.inputs import seeded
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.opencl.building import LIBRARY
from tvm_mobilenet.rpc.board_device import connect
from tvm_mobilenet.series import SeriesRequest

pytestmark = pytest.mark.opencl


def reference(artifact: Artifact, inputs) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(artifact.onnx_path))
    return {"y": session.run(["y"], dict(inputs))[0]}


def check(outputs, artifact: Artifact, inputs) -> None:
    for name, expected in reference(artifact, inputs).items():
        error = np.abs(outputs[name] - expected).max() / np.abs(expected).max()
        assert error < 1e-5


def test_here(colour: Artifact):
    (inputs,) = seeded(colour.manifest, 1)
    with LocalExecutor(colour) as executor:
        check(executor.run(inputs), colour, inputs)
        assert all(value > 0 for value in executor.times_ms(inputs, 3))
        layers = executor.layer_outputs(inputs)
        times = executor.layer_times_ms(inputs, 2)
    assert len(layers) == len(colour.manifest.layers)
    assert times.shape == (2, len(layers))
    assert (times > 0).all()
    (expected,) = reference(colour, inputs).values()
    np.testing.assert_allclose(layers[-1].reshape(expected.shape), expected, rtol=1e-4)


def test_a_series_in_a_process_of_its_own(colour: Artifact):
    series = LocalDevice().take_series(
        colour, SeriesRequest(threads=1, cpus=(), warmup=1, repeat=3, profile=True)
    )
    assert len(series.steps.values_ms) == 3
    assert series.steps.layer_times_ms is not None
    assert len(series.steps.layer_times_ms[0]) == len(colour.manifest.layers)


def test_on_a_board(colour: Artifact, opencl_agent):
    (inputs,) = seeded(colour.manifest, 1)
    with connect(opencl_agent.address).open(colour, 1) as executor:
        check(executor.run(inputs), colour, inputs)
        assert all(value > 0 for value in executor.times_ms(inputs, 3))
        layers = executor.layer_outputs(inputs)
        times = executor.layer_times_ms(inputs, 2)
    with LocalExecutor(colour, 1) as here:
        for ours, theirs in zip(here.layer_outputs(inputs), layers, strict=True):
            assert np.array_equal(ours, theirs)
    assert times.shape == (2, len(layers))
    assert (times > 0).all()


def test_on_a_board_without_the_runtime(colour: Artifact, agent_folder: Path, tmp_path: Path):
    folder = shutil.copytree(agent_folder, tmp_path / "board")
    (folder / "sidelibs" / LIBRARY).unlink()
    with (
        closing(AgentProcess(folder / AGENT, tmp_path)) as agent,
        pytest.raises(DeviceError, match="without an OpenCL runtime; make its archive for") as hit,
    ):
        connect(agent.address).open(colour, 1)
    assert hit.value.exit_code == 4
    assert "\n" not in str(hit.value)


def test_a_device_that_is_not_there(colour: Artifact, opencl_agent, monkeypatch):
    from tvm_mobilenet.opencl import runtime
    from tvm_mobilenet.opencl.facts import OpenCLFacts

    monkeypatch.setattr(runtime, "describe", lambda: OpenCLFacts(reason="no OpenCL library"))
    with pytest.raises(DeviceError, match="no OpenCL library"):
        LocalExecutor(colour)


def test_one_line_where_the_driver_refuses_a_kernel(colour: Artifact, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TVM_MOBILENET_OPENCL_OPTIONS", "-no-such-option")
    with pytest.raises(DeviceError, match=r"OpenCL: kernel \w+ cannot be built") as hit:
        LocalExecutor(colour)
    assert "\n" not in str(hit.value)
    monkeypatch.undo()
    (inputs,) = seeded(colour.manifest, 1)
    with LocalExecutor(colour) as executor:
        check(executor.run(inputs), colour, inputs)


def test_module_bytes_are_what_the_compiler_writes(colour: Artifact):
    import tvm

    library = tvm.runtime.load_module(str(colour.library_path))
    (host,) = library.imports
    (module,) = host.imports
    assert module.kind == "opencl"
    assert "// Function: " in module.inspect_source()
    assert module_bytes("", {"k": Kernel((BUFFER,))}).startswith(b"\x02")
