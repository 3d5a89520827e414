"""The other engines, each with the settings that are its fastest at the dtype compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.engine import Anywhere, Engine, Job, installed_version, only_float32
from benchmarks.mnn_convert import convert_mnn
from benchmarks.onnx_graph import GraphError, read_graph

__all__ = ["PEERS"]


class OnnxRuntime(Anywhere):
    """ONNX Runtime's CPU provider: all graph optimisations, sequential, spinning at its default."""

    def __init__(self, job: Job) -> None:
        self.version = installed_version("onnxruntime")
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(job.onnx), options, providers=["CPUExecutionProvider"]
        )
        # The binding spares the session copying its results out at every run.
        self._binding = self._session.io_binding()
        for name, array in job.inputs.items():
            self._binding.bind_cpu_input(name, array)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, "cpu")
        self.note = "sequential, inter-op 1, io binding"

    def infer(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray]:
        return [np.array(v) for v in self._binding.copy_outputs_to_cpu()]


class OpenVino(Anywhere):
    """OpenVINO's CPU plug-in with the latency hint, held to float32 (it would take bfloat16)."""

    def __init__(self, job: Job) -> None:
        self.version = installed_version("openvino")
        import openvino as ov
        from openvino import properties as props

        core = ov.Core()
        compiled = core.compile_model(
            core.read_model(job.onnx),
            "CPU",
            {
                props.inference_num_threads(): job.threads,
                props.hint.performance_mode(): props.hint.PerformanceMode.LATENCY,
                props.hint.inference_precision(): ov.Type.f32,
            },
        )
        self._request = compiled.create_infer_request()
        self._tensors = []  # kept alive: the request reads the arrays in place
        for name, array in job.inputs.items():
            tensor = ov.Tensor(array, shared_memory=True)
            self._request.set_tensor(name, tensor)
            self._tensors.append(tensor)
        self._outputs = len(compiled.outputs)
        precision = compiled.get_property(props.hint.inference_precision())
        streams = compiled.get_property(props.num_streams())
        used = compiled.get_property(props.inference_num_threads())
        self.note = f"latency hint, {precision.get_type_name()}, {streams} stream, {used} threads"

    def infer(self) -> None:
        self._request.infer()

    def outputs(self) -> list[np.ndarray]:
        return [
            np.array(self._request.get_output_tensor(i).data, copy=True)
            for i in range(self._outputs)
        ]


class Ncnn(Anywhere):
    """ncnn, float32 storage and arithmetic, everything else (Winograd, packing) at its default."""

    def __init__(self, job: Job) -> None:
        self.version = installed_version("ncnn")
        only_float32("ncnn", job)
        import ncnn

        from benchmarks.ncnn_convert import convert

        graph = read_graph(job.onnx)
        try:
            model = convert(graph)
        except GraphError as err:
            raise EngineUnavailableError(str(err)) from err
        net = ncnn.Net()
        net.opt.num_threads = job.threads
        for half in ("fp16", "bf16"):
            setattr(net.opt, f"use_{half}_packed", False)
            setattr(net.opt, f"use_{half}_storage", False)
        net.opt.use_fp16_arithmetic = False
        with tempfile.TemporaryDirectory() as folder:
            param, weights = model.write(Path(folder) / "net")
            if net.load_param(str(param)) or net.load_model(str(weights)):
                raise EngineUnavailableError("ncnn refused the converted network")
        self._net = net
        self._arrays = {model.inputs[n]: np.ascontiguousarray(a[0]) for n, a in job.inputs.items()}
        self._inputs = {blob: ncnn.Mat(array) for blob, array in self._arrays.items()}
        self._blobs = [model.outputs[s.name] for s in graph.outputs]
        self._shapes = [s.shape for s in graph.outputs]
        self._results: list[Any] = []
        self.note = "float32 storage and arithmetic, Winograd and packing on"

    def infer(self) -> None:
        extractor = self._net.create_extractor()
        for blob, mat in self._inputs.items():
            extractor.input(blob, mat)
        results = [extractor.extract(blob) for blob in self._blobs]
        if any(status for status, _ in results):
            raise RuntimeError("ncnn could not compute its outputs")
        self._results = [mat for _, mat in results]

    def outputs(self) -> list[np.ndarray]:
        return [
            np.array(m).reshape(shape) for m, shape in zip(self._results, self._shapes, strict=True)
        ]


class Mnn(Anywhere):
    """MNN's session interface, precision high.

    On x86 its precisions high, normal and low compute the same float32, to the bit and as fast. On
    Arm normal and low may be float16, so high is what is asked for everywhere.
    """

    def __init__(self, job: Job) -> None:
        self.version = installed_version("MNN")
        only_float32("MNN", job)
        mnn = import_module("MNN")
        with tempfile.TemporaryDirectory() as folder:
            path = convert_mnn(job.onnx, Path(folder) / "net.mnn")
            self._interpreter = mnn.Interpreter(str(path))
        config = {"backend": "CPU", "precision": "high", "numThread": job.threads}
        self._session = self._interpreter.createSession(config)
        self._mnn = mnn
        self._inputs = job.inputs
        self._specs = read_graph(job.onnx).outputs
        self.refill()
        self.note = f"precision high, {job.threads} threads, input copied in before each inference"

    def refill(self) -> None:
        # Between layers MNN uses the memory of its input: a second inference would compute from
        # what the first one left there.
        for name, array in self._inputs.items():
            tensor = self._interpreter.getSessionInput(self._session, name)
            tensor.copyFrom(self._tensor(array))

    def infer(self) -> None:
        self._interpreter.runSession(self._session)

    def outputs(self) -> list[np.ndarray]:
        arrays = []
        for spec in self._specs:
            tensor = self._tensor(np.zeros(spec.shape, np.float32))
            self._interpreter.getSessionOutput(self._session, spec.name).copyToHostTensor(tensor)
            arrays.append(np.array(tensor.getNumpyData()).reshape(spec.shape))
        return arrays

    def _tensor(self, array: np.ndarray) -> Any:
        mnn = self._mnn
        layout = mnn.Tensor_DimensionType_Caffe
        return mnn.Tensor(array.shape, mnn.Halide_Type_Float, array, layout)


class LiteRt(Anywhere):
    """LiteRT's interpreter with XNNPACK, on a model that `litert_convert.py` made. NHWC input."""

    def __init__(self, job: Job) -> None:
        self.version = installed_version("ai-edge-litert")
        from ai_edge_litert.interpreter import Interpreter

        from benchmarks.litert_convert import convert

        try:
            content = convert(read_graph(job.onnx))
        except GraphError as err:
            raise EngineUnavailableError(str(err)) from err
        self._interpreter = Interpreter(model_content=content, num_threads=job.threads)
        self._interpreter.allocate_tensors()
        arrays = job.inputs.values()
        for detail, array in zip(self._interpreter.get_input_details(), arrays, strict=True):
            nhwc = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(nhwc))
        self.note = f"XNNPACK, {job.threads} threads, NHWC input"

    def infer(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> list[np.ndarray]:
        arrays = [
            self._interpreter.get_tensor(detail["index"])
            for detail in self._interpreter.get_output_details()
        ]
        return [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in arrays]


PEERS: dict[str, Callable[[Job], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "mnn": Mnn,
    "litert": LiteRt,
}
