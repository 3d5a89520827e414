"""Make the files beside this one: a small network of MobileNet's parts, quantized by real tools.

    pip install --target EXTRA --no-deps nncf==3.4.0 torchao==0.18.0 tabulate pydot networkx natsort
    PYTHONPATH=EXTRA python tests/frontend/real/make.py

Both read the same float model. NNCF quantizes its ONNX file, torchao the exported program, which
PyTorch's exporter then writes as ONNX. They are no dependencies of the project: the files are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

HERE = Path(__file__).resolve().parent
SHAPE = (1, 3, 32, 32)


def _unit(
    inputs: int, outputs: int, kernel: int, act: Any, stride: int = 1, groups: int = 1
) -> Any:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, act()) if act else nn.Sequential(*layers)


class Block(nn.Module):
    """An inverted bottleneck, with squeeze-and-excite if asked for."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Any, gated: bool) -> None:
        super().__init__()
        wide = 2 * inputs
        self.expand = _unit(inputs, wide, 1, act)
        self.depthwise = _unit(wide, wide, 3, act, stride, wide)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, wide, 1),
            nn.Hardsigmoid(),
        )
        self.gated = gated
        self.project = _unit(wide, outputs, 1, None)
        self.keeps_shape = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        if self.gated:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.keeps_shape else y


def main() -> None:
    torch.manual_seed(7)
    model = nn.Sequential(
        _unit(3, 8, 3, nn.Hardswish, 2),
        Block(8, 16, 2, nn.ReLU6, False),
        Block(16, 16, 1, nn.ReLU6, True),
        Block(16, 24, 1, nn.Hardswish, True),
        Block(24, 24, 1, nn.Hardswish, False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    with torch.no_grad():
        for _ in range(20):  # statistics of the batch norms
            model(torch.randn(8, *SHAPE[1:]))
    model.eval()
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(SHAPE, dtype="float32") for _ in range(32)]
    x = torch.from_numpy(samples[0])

    def export(module: Any) -> onnx.ModelProto:
        program = torch.onnx.export(
            module, (x,), dynamo=True, opset_version=20, input_names=["x"], output_names=["y"]
        )
        assert program is not None
        return program.model_proto

    quantized = nncf.quantize(
        export(model), nncf.Dataset(samples, lambda sample: {"x": sample}), subset_size=32
    )
    save(quantized, "nncf.onnx")
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    for sample in samples:
        prepared(torch.from_numpy(sample))
    save(export(convert_pt2e(prepared)), "torchao.onnx")


def save(model: onnx.ModelProto, name: str) -> None:
    """Write a file without the stack traces that exporters leave in it."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    onnx.save(model, str(HERE / name))


if __name__ == "__main__":
    main()
