"""Other engines' AArch64 wheels under the emulator: what each is given, and how it is started."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.arm_python import arm_python, host_wheel
from benchmarks.counting import count_inference, counter_option
from benchmarks.litert_convert import convert as convert_litert
from benchmarks.mnn_convert import convert_mnn
from benchmarks.ncnn_convert import convert as convert_ncnn
from benchmarks.onnx_graph import OnnxGraph

__all__ = ["ARM_PEERS", "run_arm_peer"]

ARM_PEERS = {
    "mnn": "MNN==3.6.1",
    "ncnn": "ncnn==1.0.20261020",
    "litert": "ai-edge-litert==2.3.0",
    "onnxruntime": "onnxruntime==1.32.0",
}
_NUMPY = "numpy==2.4.6"
_GUEST = Path(__file__).resolve().parent / "guest_peer.py"


def run_arm_peer(
    peer: str, graph: OnnxGraph, x: np.ndarray, cpu: str, dtype: str
) -> tuple[dict[str, int], np.ndarray]:
    """Run one engine on one thread; return the instructions of an inference, and its output.

    Raises:
        EngineUnavailableError: it cannot be fetched, does not take the model, or fails.
        GraphError: the model has no translation into the engine's format.
    """
    if dtype == "int8" and peer in ("mnn", "ncnn"):
        raise EngineUnavailableError(f"{peer} reads no int8 model from ONNX")
    python = arm_python()
    site = python.site([_NUMPY, ARM_PEERS[peer]])
    with tempfile.TemporaryDirectory(prefix="count-") as scratch:
        folder = Path(scratch)
        models, names = _given(peer, graph, folder)
        # LiteRT's models take their picture in NHWC, as ours do.
        np.save(folder / "input.npy", x.transpose(0, 2, 3, 1) if peer == "litert" else x)
        command = python.command(cpu, counter_option(folder))
        command += [str(_GUEST), peer, *map(str, models)]
        command += [str(folder / "input.npy"), str(folder / "output.npy"), *names]
        environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        classes = count_inference(command, folder, environment)
        return classes, np.load(folder / "output.npy")


def _given(peer: str, graph: OnnxGraph, folder: Path) -> tuple[Sequence[Path], list[str]]:
    """Write the engine's own files; return them, and what it calls input and output."""
    names = [graph.inputs[0].name, graph.outputs[0].name]
    if peer == "ncnn":
        network = convert_ncnn(graph)
        return network.write(folder / "net"), [network.inputs[names[0]], network.outputs[names[1]]]
    if peer == "litert":
        path = folder / "net.tflite"
        path.write_bytes(convert_litert(graph))
        return [path], names
    if peer == "mnn":
        return [
            convert_mnn(graph.path, folder / "net.mnn", site=host_wheel(ARM_PEERS[peer]))
        ], names
    return [graph.path], names
