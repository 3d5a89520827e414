"""Quantization-aware training: fine-tune a quantized model with its own rounding in the loop.

What is trained is the quantized ONNX graph itself, node by node in torch: its quantize and
dequantize round and clip as the compiled integers do, with the scales that calibration gave the
activations, and the rounding passes gradients straight through. So the accuracy seen in training is
that of the file, and the file that comes out has the same nodes with other weights.

torch's own `fake_quantize_per_*_affine` do the rounding: they are part of torch's core, where
`torch.ao` is on its way out of it.

Reference: Jacob et al. 2018 (arXiv:1712.05877), section 3; Krishnamoorthi 2018 (arXiv:1806.08342).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from tvm_mobilenet.datasets import Dataset, load_dataset
from tvm_mobilenet.errors import (
    SpecError,
    TrainError,
    UnsupportedOpError,
    UsageError,
    error_context,
)
from tvm_mobilenet.files import new_file, sha256_of
from tvm_mobilenet.models.preprocess import normalize
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.quantize.options import QuantizeOptions
from tvm_mobilenet.quantize.quantizer import quantize_model
from tvm_mobilenet.records import Record
from tvm_mobilenet.training.classification import augmented, evaluate
from tvm_mobilenet.training.loop import seeded_torch
from tvm_mobilenet.training.recipe import Recipe
from tvm_mobilenet.training.task import batches

__all__ = ["DEFAULT_EPOCHS", "QatResult", "QdqModule", "train_quantized"]

DEFAULT_EPOCHS = 5
_BATCH = 64
_LEARNING_RATE = 1e-3
_MOMENTUM = 0.9
_WEIGHT_ENDS = (-127, 127)


class QatResult(Record):
    """A finished fine-tuning: the quantized file and how good it is."""

    model: str
    data: str
    onnx: str
    sha256: str
    epochs: int
    best_epoch: int
    """0 where no epoch was better than the calibrated model."""
    calibrated_accuracy: float
    """Of the held-out pictures, before the first epoch: that of post-training quantization."""
    held_out_accuracy: float
    """Of the best epoch. The best was chosen by it, so it flatters a little."""
    seed: int
    seconds: float


def train_quantized(
    model: str | Path,
    data: str | Path,
    *,
    out: Path | str,
    weights: Path | str | None = None,
    epochs: int = DEFAULT_EPOCHS,
    seed: int = 0,
    options: QuantizeOptions | None = None,
    progress: Progress | None = None,
) -> QatResult:
    """Quantize a trained model, fine-tune it with its rounding, and write the best as QDQ ONNX.

    Args:
        model: a name, one of our weight files, or a float `.onnx` file of ours.
        data: `digits`, or a folder with one sub-folder of pictures for each class.
        out: the file to write, `.onnx`.
        weights: the trained weights, where `model` is a name.
        epochs: passes over the training pictures; a calibrated model needs few.
        seed: of the order of the pictures and the augmentation.
        options: of the quantization that training starts from.
        progress: told of every step.

    Raises:
        UsageError: the request cannot be met.
        UnsupportedOpError: the graph has an operator that training does not know.
        TrainError: the loss is no longer finite.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.suffix != ".onnx":
        raise UsageError(f"ONNX file {out}: a quantized model is written as .onnx; name it so")
    if epochs < 1:
        raise SpecError(f"epochs is {epochs}, but at least 1 is needed")
    progress = progress or NoProgress()
    with error_context(stage="train", model=str(model)), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calibrated.onnx"
        quantize_model(
            model,
            data,
            out=path,
            weights=weights,
            options=options,
            sensitivity=False,
            progress=progress,
        )
        from tvm_mobilenet.onnx_file import read_exported

        exported = read_exported(path)
        if exported.preprocessing is None:
            raise SpecError(f"model {model}: it does not say how pictures are prepared for it")
        dataset = load_dataset(
            data,
            resolution=exported.preprocessing.crop,
            preprocessing=exported.preprocessing,
            progress=progress,
        )
        _check_classes(str(model), exported.outputs[0].shape[-1], dataset)
        module = QdqModule(onnx.load(path))
        tuning = _Tuning(module, dataset, epochs, seed)
        tuning.run(progress)
        with new_file(out) as temporary:
            temporary.write_bytes(tuning.best_model().SerializeToString(deterministic=True))
    return QatResult(
        model=exported.origin.name,
        data=dataset.name,
        onnx=str(out),
        sha256=sha256_of(out),
        epochs=epochs,
        best_epoch=tuning.best_epoch,
        calibrated_accuracy=tuning.accuracies[0],
        held_out_accuracy=tuning.accuracies[tuning.best_epoch],
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _check_classes(model: str, classes: int, dataset: Dataset) -> None:
    if classes != len(dataset.class_names):
        raise SpecError(
            f"model {model} tells {classes} classes apart, the data has "
            f"{len(dataset.class_names)}; give weights that were trained on these"
        )


class _Tuning:
    """The epochs, and the best state so far."""

    def __init__(self, module: QdqModule, dataset: Dataset, epochs: int, seed: int) -> None:
        self.module = module
        self.dataset = dataset
        self.epochs = epochs
        self.seed = seed
        self.accuracies: list[float] = []
        self.best_epoch = 0
        self._best = {}  # type: dict[str, torch.Tensor]

    def run(self, progress: Progress) -> None:
        """Do every epoch; the calibrated model is the first candidate."""
        split = self.dataset.train
        steps = len(batches(np.arange(len(split)), _BATCH))
        optimizer = torch.optim.SGD(self.module.parameters(), lr=_LEARNING_RATE, momentum=_MOMENTUM)
        progress.start("training with rounding", steps * self.epochs)
        self._judge()
        for epoch in range(self.epochs):
            rng = np.random.default_rng([self.seed, epoch])
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            self.module.train()
            with seeded_torch(rng):
                for indices in batches(rng.permutation(len(split)), _BATCH):
                    pixels = augmented(split, indices, self.dataset.mirrored, Recipe(), rng)
                    x = torch.from_numpy(normalize(pixels, self.dataset.preprocessing))
                    loss = self._step(optimizer, x, split.labels[indices])
                    progress.advance(1, f"loss {loss:.3f}")
            self._judge()
        progress.done(f"accuracy {100 * self.accuracies[self.best_epoch]:.2f} %")

    def _step(
        self, optimizer: torch.optim.Optimizer, x: torch.Tensor, labels: npt.NDArray[np.int64]
    ) -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.module(x), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainError(f"fine-tuning: the loss is {value}; start from better weights")
        return value

    def _judge(self) -> None:
        _, accuracy = evaluate(self.module, self.dataset.held_out)
        self.accuracies.append(accuracy)
        if accuracy > self.accuracies[self.best_epoch] or len(self.accuracies) == 1:
            self.best_epoch = len(self.accuracies) - 1
            self._best = {k: v.clone() for k, v in self.module.state_dict().items()}

    def best_model(self) -> onnx.ModelProto:
        """Return the file's content with the best epoch's weights."""
        self.module.load_state_dict(self._best)
        return self.module.as_onnx()


@dataclass(frozen=True)
class _Weight:
    """A dequantize of constants: weights or a bias."""

    integers: str
    scale: str
    zero: str | None
    axis: int


class QdqModule(nn.Module):
    """A quantized ONNX graph as a torch module whose weights and biases can be trained.

    Args:
        model: in QDQ form, as `quantize` writes it.

    Shapes:
        (N, 3, H, W) f32 -> (N, classes) f32, for any N.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._model = model
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._constants = {name: torch.from_numpy(a.copy()) for name, a in constants.items()}
        self._weights: dict[str, _Weight] = {}
        self._input = model.graph.input[0].name
        self._output = model.graph.output[0].name
        self.trained = nn.ParameterList()
        self._index: dict[str, int] = {}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in constants:
                self._add_weight(node, constants)
            elif node.op_type not in (*_OPERATORS, "DequantizeLinear", "QuantizeLinear"):
                raise UnsupportedOpError(
                    f"operator {node.op_type} (node {node.name or node.output[0]!r}) cannot be "
                    "trained with rounding; use `quantize`"
                )

    def _add_weight(self, node: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]) -> None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        zero = node.input[2] if len(node.input) > 2 else None
        values = constants[node.input[0]]
        scale = constants[node.input[1]].reshape(-1)
        if values.ndim == 1:
            axis = 0
        shape = [-1 if i == axis and scale.size > 1 else 1 for i in range(values.ndim)]
        name = node.output[0]
        self._weights[name] = _Weight(node.input[0], node.input[1], zero, axis)
        self._index[name] = len(self.trained)
        floats = values.astype(np.float32) * scale.reshape(shape).astype(np.float32)
        self.trained.append(nn.Parameter(torch.from_numpy(np.ascontiguousarray(floats))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the graph, rounded as the integers are."""
        values: dict[str, Any] = {**self._constants, self._input: x}
        quantized: dict[str, onnx.NodeProto] = {}
        for node in self._model.graph.node:
            name = node.output[0]
            if name in self._weights:
                values[name] = self._rounded(name)
            elif node.op_type == "QuantizeLinear":
                values[name] = self._fake_quantized(node, values[node.input[0]])
                quantized[name] = node
            elif node.op_type == "DequantizeLinear":
                values[name] = values[node.input[0]]
            else:
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                inputs = [values[i] if i else None for i in node.input]
                values[name] = _OPERATORS[node.op_type](inputs, attributes)
        result: torch.Tensor = values[self._output]
        return result

    def _fake_quantized(self, node: onnx.NodeProto, x: torch.Tensor) -> torch.Tensor:
        scale = float(self._constants[node.input[1]])
        zero = self._constants[node.input[2]]
        ends = torch.iinfo(zero.dtype)
        return torch.fake_quantize_per_tensor_affine(x, scale, int(zero), ends.min, ends.max)

    def _scale(self, name: str) -> torch.Tensor:
        """Return the scales of weights as they are now; those of a bias as in the file."""
        weight = self._weights[name]
        parameter = self.trained[self._index[name]]
        if parameter.ndim == 1:
            return self._constants[weight.scale].reshape(-1)
        others = [i for i in range(parameter.ndim) if i != weight.axis]
        largest = parameter.detach().abs().amax(dim=others)
        return torch.clamp(largest, min=1e-12) / _WEIGHT_ENDS[1]

    def _rounded(self, name: str) -> torch.Tensor:
        weight, parameter = self._weights[name], self.trained[self._index[name]]
        if parameter.ndim == 1:  # a bias has 32 bits: its rounding is beyond float32's own
            return parameter
        scale = self._scale(name)
        return torch.fake_quantize_per_channel_affine(
            parameter, scale, torch.zeros_like(scale).int(), weight.axis, *_WEIGHT_ENDS
        )

    def as_onnx(self) -> onnx.ModelProto:
        """Return the file's content with the weights and biases as they are now."""
        model: onnx.ModelProto = onnx.ModelProto.FromString(self._model.SerializeToString())
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        producers = {output: node for node in model.graph.node for output in node.output}

        def write(name: str, value: npt.NDArray[Any]) -> None:
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

        scales: dict[str, npt.NDArray[np.float32]] = {}
        for name, weight in self._weights.items():
            parameter = self.trained[self._index[name]].detach().numpy()
            if parameter.ndim == 1:
                continue
            scale = self._scale(name).numpy().astype(np.float32)
            scales[name] = scale
            shape = [-1 if i == weight.axis else 1 for i in range(parameter.ndim)]
            steps = np.clip(np.rint(parameter / scale.reshape(shape)), *_WEIGHT_ENDS)
            write(weight.integers, steps.astype(np.int8))
            write(weight.scale, scale)
        for node in model.graph.node:
            bias = node.input[2] if len(node.input) > 2 else ""
            if node.op_type not in ("Conv", "Gemm") or bias not in self._weights:
                continue
            x_scale = numpy_helper.to_array(tensors[producers[node.input[0]].input[1]])
            unit = (x_scale * scales[node.input[1]]).astype(np.float32)
            parameter = self.trained[self._index[bias]].detach().numpy()
            limit = 2**31 - 1
            steps = np.clip(np.rint(parameter.astype(np.float64) / unit), -limit, limit)
            write(self._weights[bias].integers, steps.astype(np.int32))
            write(self._weights[bias].scale, unit)
        return model


def _conv(inputs: list[Any], attributes: dict[str, Any]) -> torch.Tensor:
    x, weight, bias = (*inputs, None)[:3]
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        x = nn.functional.pad(x, (left, right, top, bottom))
        top = left = 0
    return nn.functional.conv2d(
        x,
        weight,
        bias,
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=(top, left),
        dilation=tuple(attributes.get("dilations", (1, 1))),
        groups=int(attributes.get("group", 1)),
    )


def _gemm(inputs: list[Any], attributes: dict[str, Any]) -> torch.Tensor:
    x, weight, bias = (*inputs, None)[:3]
    return nn.functional.linear(x, weight if attributes.get("transB", 0) else weight.T, bias)


def _clip(inputs: list[Any], _attributes: dict[str, Any]) -> torch.Tensor:
    x, low, high = (*inputs, None, None)[:3]
    result: torch.Tensor = torch.clamp(
        x, None if low is None else float(low), None if high is None else float(high)
    )
    return result


_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], torch.Tensor]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Clip": _clip,
    "Conv": _conv,
    "Flatten": lambda inputs, _: inputs[0].flatten(1),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean((2, 3), keepdim=True),
    "HardSigmoid": lambda inputs, a: torch.clamp(
        inputs[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1
    ),
    "HardSwish": lambda inputs, _: nn.functional.hardswish(inputs[0]),
    "Identity": lambda inputs, _: inputs[0],
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Relu": lambda inputs, _: torch.relu(inputs[0]),
}
