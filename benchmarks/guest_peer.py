"""Runs inside the emulated Python: one engine, its inferences between marks that are counted.

    guest_peer.py ENGINE MODEL... INPUT.npy OUTPUT.npy INPUT_NAME OUTPUT_NAME

Only numpy and the engine are there. Slot 1 is one inference, slot 2 three of them: what the call
around them costs is in both, and their difference is two inferences and nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import numpy as np

MARK, RESET, BEGIN, END = 0x7F4D4E, 0, 1, 2


def mark(op: int, slot: int) -> None:
    ctypes.CDLL(None).syscall(ctypes.c_long(MARK), ctypes.c_long(op), ctypes.c_long(slot))


def ncnn_engine(models: list[str], x: np.ndarray, names: list[str]) -> Callable[[], np.ndarray]:
    import ncnn  # type: ignore[import-not-found,unused-ignore]

    net = ncnn.Net()
    net.opt.num_threads = 1
    for half in ("fp16", "bf16"):
        setattr(net.opt, f"use_{half}_packed", False)
        setattr(net.opt, f"use_{half}_storage", False)
    net.opt.use_fp16_arithmetic = False
    if net.load_param(models[0]) or net.load_model(models[1]):
        raise SystemExit("ncnn refused the converted network")
    array = np.ascontiguousarray(x[0])
    image = ncnn.Mat(array)

    def infer() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input(names[0], image)
        status, result = extractor.extract(names[1])
        if status:
            raise SystemExit("ncnn could not compute its output")
        return np.array(result)

    return infer


def mnn_engine(models: list[str], x: np.ndarray, names: list[str]) -> Callable[[], np.ndarray]:
    import MNN

    interpreter = MNN.Interpreter(models[0])
    session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": 1})
    caffe = MNN.Tensor_DimensionType_Caffe
    host = MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, caffe)
    interpreter.getSessionInput(session, names[0]).copyFrom(host)
    output = interpreter.getSessionOutput(session, names[1])

    def infer() -> np.ndarray:
        interpreter.runSession(session)
        return output

    return infer


def mnn_result(output: object) -> np.ndarray:
    import MNN

    shape = output.getShape()  # type: ignore[attr-defined]
    array = np.zeros(shape, np.float32)
    tensor = MNN.Tensor(shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)
    output.copyToHostTensor(tensor)  # type: ignore[attr-defined]
    return np.array(tensor.getNumpyData())


def onnxruntime_engine(
    models: list[str], x: np.ndarray, names: list[str]
) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(models[0], options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run([names[1]], {names[0]: x})[0])


def litert_engine(models: list[str], x: np.ndarray, names: list[str]) -> Callable[[], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=models[0], num_threads=1)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(x))

    def infer() -> np.ndarray:
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(sink["index"]))

    return infer


ENGINES = {
    "ncnn": ncnn_engine,
    "mnn": mnn_engine,
    "onnxruntime": onnxruntime_engine,
    "litert": litert_engine,
}


def main(arguments: list[str]) -> None:
    engine, *models, source, sink, input_name, output_name = arguments
    x = np.load(source)  # engines read it in place: it has to live as long as they do
    infer = ENGINES[engine](models, x, [input_name, output_name])
    # The first inference is the one that is compared: MNN uses its input's memory again for what
    # lies between layers, so that a second one computes from something else, just as long.
    result = infer()
    np.save(sink, mnn_result(result) if engine == "mnn" else result)
    infer()
    mark(RESET, 0)
    for slot, count in ((1, 1), (2, 3)):
        mark(BEGIN, slot)
        for _ in range(count):
            infer()
        mark(END, slot)


if __name__ == "__main__":
    main(sys.argv[1:])
