"""The engines that are compared, each behind the same four calls.

An engine lives in a worker process of its own (see `workers.py`), so its import and its threads
touch nobody else. `infer` is the cheapest way the engine's Python interface offers to compute once
from inputs that are in place and to leave the outputs in memory; `outputs` fetches them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from benchmarks.absence import EngineUnavailableError
from benchmarks.mnn_convert import convert_mnn
from benchmarks.onnx_graph import GraphError, read_graph
from tvm_mobilenet import __version__
from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.compute_thread import ComputeThread

__all__ = ["ENGINES", "OURS", "PEAK", "PEERS", "Engine", "Job"]


_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Job:
    """One model for one engine."""

    onnx: Path
    inputs: dict[str, np.ndarray]
    threads: int
    artifact: Path | None = None
    """Folder of our compiled model; the other engines do not look at it."""
    dtype: str = "float32"
    """What the file computes with: int8 if it is quantized."""


class Engine(Protocol):
    """An inference engine with one model loaded."""

    version: str
    note: str
    """Settings that a reader of the table should know."""

    def refill(self) -> None:
        """Put the inputs in place again, where `infer` uses their memory up. Not timed."""

    def infer(self) -> None:
        """Compute every output once."""

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last `infer`, in the order of the ONNX file."""

    def on_its_thread(self, function: Callable[[], _R]) -> _R:
        """Call `function`, which calls `infer` many times, on the thread that the engine wants."""


class _Anywhere:
    """An engine that is called from any thread, and that leaves its inputs alone."""

    def on_its_thread(self, function: Callable[[], _R]) -> _R:
        return function()

    def refill(self) -> None:
        pass


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise EngineUnavailableError(f"not installed (pip install {package})") from None


def _only_float32(engine: str, job: Job) -> None:
    if job.dtype != "float32":
        raise EngineUnavailableError(f"{engine} reads no {job.dtype} model from ONNX")


class OnnxRuntime(_Anywhere):
    """ONNX Runtime's CPU provider: all graph optimisations, sequential, spinning at its default."""

    def __init__(self, job: Job) -> None:
        self.version = _version("onnxruntime")
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


class OpenVino(_Anywhere):
    """OpenVINO's CPU plug-in with the latency hint, held to float32 (it would take bfloat16)."""

    def __init__(self, job: Job) -> None:
        self.version = _version("openvino")
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


class Ncnn(_Anywhere):
    """ncnn, float32 storage and arithmetic, everything else (Winograd, packing) at its default."""

    def __init__(self, job: Job) -> None:
        self.version = _version("ncnn")
        _only_float32("ncnn", job)
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


class Mnn(_Anywhere):
    """MNN's session interface, precision high.

    On x86 its precisions high, normal and low compute the same float32, to the bit and as fast. On
    Arm normal and low may be float16, so high is what is asked for everywhere.
    """

    def __init__(self, job: Job) -> None:
        self.version = _version("MNN")
        _only_float32("MNN", job)
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


class LiteRt(_Anywhere):
    """LiteRT's interpreter with XNNPACK, on a model that `litert_convert.py` made. NHWC input."""

    def __init__(self, job: Job) -> None:
        self.version = _version("ai-edge-litert")
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


class Ours:
    """A library that this project compiled, run by TVM's virtual machine."""

    version = __version__

    def __init__(self, job: Job) -> None:
        if job.artifact is None:
            raise EngineUnavailableError("nothing compiled; leave out --ours to compile it")
        artifact = open_artifact(job.artifact)
        self._outputs = artifact.manifest.outputs
        # TVM takes half of an x86 machine's processors, and pins the calling thread, unless it is
        # told otherwise before its first call: the product does that on a thread of its own.
        self._thread = ComputeThread(job.threads)
        self._thread.call(self._load, artifact, job.inputs)

    def _load(self, artifact: Artifact, inputs: dict[str, np.ndarray]) -> None:
        import tvm
        from tvm import relax

        self.note = f"TVM {tvm.__version__}, {artifact.manifest.schedule.tuned} layers tuned"
        library = tvm.runtime.load_module(str(artifact.library_path))
        self._vm = relax.VirtualMachine(library, tvm.cpu())
        arrays = []
        for info in artifact.manifest.inputs:
            array = inputs[info.name]
            if info.layout == "NHWC":
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            arrays.append(tvm.runtime.tensor(array))
        self._vm.set_input("main", *arrays)

    def refill(self) -> None:
        pass

    def infer(self) -> None:
        self._vm.invoke_stateful("main")

    def outputs(self) -> list[np.ndarray]:
        result = self._vm.get_outputs("main")
        tensors = [result] if len(self._outputs) == 1 else list(result)
        arrays = [t.numpy() for t in tensors]
        return [
            a.transpose(0, 3, 1, 2) if info.layout == "NHWC" else a
            for a, info in zip(arrays, self._outputs, strict=True)
        ]

    def on_its_thread(self, function: Callable[[], _R]) -> _R:
        return self._thread.call(function)


_PEAK_SOURCE = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float v __attribute__((vector_size(BYTES)));
/* Twelve chains of fused multiply-adds: more than latency times issue width anywhere, and few
   enough for sixteen registers. Returns the floating-point operations done. */
double peak(long rounds, float *sink) {
  v a[12], b = {0}, c = {0};
  b += 0.999f; c += 1e-3f;
  for (int i = 0; i < 12; ++i) { v z = {0}; a[i] = z + (float)i; }
  for (long r = 0; r < rounds; ++r)
    for (int i = 0; i < 12; ++i) a[i] = a[i] * b + c;
  v s = {0};
  for (int i = 0; i < 12; ++i) s += a[i];
  *sink = s[0];
  return 2.0 * 12.0 * (double)rounds * (BYTES / sizeof(float));
}
"""


class Peak(_Anywhere):
    """No engine: the multiply-adds a core can do at all, measured in the same rounds.

    `flop` is what one `infer` computes. The share of the peak in the table is the model's own
    operations per second over this.
    """

    version = ""
    note = "fused multiply-adds from registers, no memory"

    def __init__(self, job: Job) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise EngineUnavailableError("no C compiler for the peak kernel")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
            source.write_text(_PEAK_SOURCE, encoding="utf-8")
            flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            done = subprocess.run(
                [compiler, *flags, str(source), "-o", str(library)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise EngineUnavailableError(f"peak kernel: {done.stderr.strip().splitlines()[-1]}")
            self._peak = ctypes.CDLL(str(library)).peak
        self._peak.restype = ctypes.c_double
        self._peak.argtypes = [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
        self._threads = job.threads
        self.flop = 0.0

    def _one_core(self, _: int) -> float:
        sink = ctypes.c_float()
        return float(self._peak(2_000_000, ctypes.byref(sink)))

    def infer(self) -> None:
        # ctypes lets go of the interpreter's lock, so the threads do run side by side. They are
        # started anew each time: 0.1 ms beside the several that the kernel takes.
        with ThreadPoolExecutor(self._threads) as pool:
            self.flop = sum(pool.map(self._one_core, range(self._threads)))

    def outputs(self) -> list[np.ndarray]:
        return [np.array([self.flop])]


OURS = "tvm-mobilenet"
PEAK = "peak"
PEERS: dict[str, Callable[[Job], Engine]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "mnn": Mnn,
    "litert": LiteRt,
}
ENGINES: dict[str, Callable[[Job], Engine]] = {**PEERS, OURS: Ours, PEAK: Peak}


def silence_stdout() -> None:
    """Send what engines print to standard output (MNN does) to standard error."""
    sys.stdout.flush()
    os.dup2(2, 1)
