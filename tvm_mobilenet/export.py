"""PyTorch to ONNX: fixed shape, pinned opset, and accepted only if it computes the same.

The same model and weights give the same file, byte for byte, from the same versions of torch and
onnxscript.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from tvm_mobilenet.detection.onnx_function import attach_detections
from tvm_mobilenet.errors import ExportError, SpecError, UsageError, error_context
from tvm_mobilenet.files import new_file
from tvm_mobilenet.models.ssd import Ssd
from tvm_mobilenet.models.weights import CreatedModel, create_model
from tvm_mobilenet.onnx_file import METADATA_KEY, ExportMetadata, read_exported
from tvm_mobilenet.protocols import NoProgress, Progress
from tvm_mobilenet.records import ExportedModel

__all__ = ["INPUT_NAME", "MAX_RELATIVE_ERROR", "OPSET", "OUTPUT_NAME", "export_onnx"]

logger = logging.getLogger(__name__)

OPSET = 20
INPUT_NAME = "input"
OUTPUT_NAME = "logits"
"""Of a classifier."""
_HEADS = ("offsets", "logits")
"""Of a detector, before its detections are put in their place."""

MAX_RELATIVE_ERROR = 1e-4
"""Largest difference to PyTorch, as a share of the largest logit.

Both add float32 numbers in different orders, and the exporter folds batch norms into weights: with
random weights that comes to 1.4e-6 (1.0/224) to 8e-6 (0.25/32) after 28 layers, each of the two
being about as far from float64. A bias that is off by a hundredth shows at 1e-3.
"""
_COMPARED_INPUTS = 4


def export_onnx(
    model_name: str,
    *,
    out: Path | str,
    weights: Path | str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    batch: int = 1,
    progress: Progress | None = None,
) -> ExportedModel:
    """Export a model with the weights of a file, or with seeded random ones.

    The file appears whole or not at all, and only once ONNX Runtime has computed from it what
    PyTorch computes.

    Args:
        model_name: of a family and a size, such as `mobilenet_v2_0.35_96`.
        out: the file to write, `.onnx`.
        weights: a `.safetensors` or `.pth` file; None for random weights.
        num_classes: None for as many as the weights have, or 1000 without.
        seed: of the random weights.
        batch: pictures in one inference, fixed in the file.
        progress: told of every step.

    Raises:
        UnknownModelError, SpecError, WeightsError: the request cannot be met.
        ExportError: the exported file is not valid, or disagrees with PyTorch.
        OutputError: `out` cannot be written.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise UsageError(f"ONNX file {out}: the name must end in .onnx")
    if batch < 1:
        raise SpecError(f"batch is {batch}, but at least 1 is needed")
    progress = progress or NoProgress()
    with error_context(stage="export", model=model_name):
        progress.start(f"exporting {model_name}", 3)
        created = create_model(model_name, weights=weights, num_classes=num_classes, seed=seed)
        if batch > 1 and created.spec.task == "detection":
            raise SpecError(f"batch is {batch}, but a detector looks at one picture at a time")
        progress.advance(1, "tracing")
        model = _trace(created, batch)
        progress.advance(1, "comparing with PyTorch")
        error = _compare(created, model, batch)
        _finish(created, model)
        with new_file(out) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        progress.advance(1)
        progress.done(f"largest difference to PyTorch {error:.1e}")
    logger.info("%s: largest difference to PyTorch %.1e", out, error)
    return read_exported(out).model_copy(update={"max_abs_error": error})


def _trace(created: CreatedModel, batch: int) -> onnx.ModelProto:
    """Run the exporter and put its result in a form that depends on model and weights alone."""
    resolution = created.spec.resolution
    example = torch.zeros(batch, 3, resolution, resolution)
    try:
        with _quiet():
            program = torch.onnx.export(
                created.module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=_output_names(created),
                external_data=False,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        _name_after_modules(model)
        _drop_notes(model)
        metadata = ExportMetadata(
            origin=created.origin,
            preprocessing=created.preprocessing,
            class_names=created.class_names,
        )
        onnx.helper.set_model_props(model, {METADATA_KEY: metadata.model_dump_json()})
        onnx.checker.check_model(model, full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as err:
        reason = str(err).strip().split("\n")[0]
        raise ExportError(f"model {created.spec.name} cannot be exported: {reason}") from err
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from warning of packages that it could use and of its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    loggers += [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.startswith(("torch.onnx.", "onnxscript.", "onnx_ir."))
    ]
    levels = [(each, each.level) for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in levels:
            each.setLevel(level)


def _name_after_modules(model: onnx.ModelProto) -> None:
    """Name nodes and tensors after the torch module whose output they compute.

    The exporter's `getitem_51` becomes `blocks.8.depthwise.bn`, so that tables and errors point
    into the network. The graph's inputs and outputs keep their names.
    """
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    taken = kept | {tensor.name for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        name = _unused(_module_of(node) or node.op_type.lower(), taken)
        node.name = name
        for index, output in enumerate(node.output):
            if output and output not in kept:
                renamed[output] = name if index == 0 else f"{name}.{index}"
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [renamed.get(tensor, tensor) for tensor in tensors]
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _module_of(node: onnx.NodeProto) -> str:
    """Read the module's path out of the exporter's notes, such as `['', 'stem', 'stem.bn', 'x']`.

    The last entry is the operator itself.
    """
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", note.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _unused(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _drop_notes(model: onnx.ModelProto) -> None:
    """Drop what the exporter noted: stack traces with this machine's paths, half of the text."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph = model.graph
    graph.name = "main"
    noted = (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for item in noted:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def _compare(created: CreatedModel, model: onnx.ModelProto, batch: int) -> float:
    """Return the largest difference to PyTorch on seeded noise.

    Raises:
        ExportError: it is above the threshold, or not a number.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = _output_names(created)
    rng = np.random.default_rng(0)
    resolution = created.spec.resolution
    worst, largest = 0.0, 0.0
    for _ in range(_COMPARED_INPUTS):
        x = rng.standard_normal((batch, 3, resolution, resolution), dtype=np.float32)
        expected = _torch_outputs(created.module, x)
        found = session.run(names, {INPUT_NAME: x})
        for ours, theirs in zip(found, expected, strict=True):
            # numpy's maximum keeps NaN, which the comparison below then refuses.
            worst = float(np.maximum(worst, np.max(np.abs(ours - theirs))))
            largest = float(np.maximum(largest, np.max(np.abs(theirs))))
    if not worst <= MAX_RELATIVE_ERROR * largest:
        raise ExportError(
            f"model {created.spec.name}: the exported file departs from PyTorch by {worst:.2e}, "
            f"more than {MAX_RELATIVE_ERROR:g} of the largest logit {largest:.3g}; it was not kept"
        )
    return worst


def _torch_outputs(module: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(x))
    return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _output_names(created: CreatedModel) -> list[str]:
    return list(_HEADS) if created.spec.task == "detection" else [OUTPUT_NAME]


def _finish(created: CreatedModel, model: onnx.ModelProto) -> None:
    """Put behind the network what is computed with its outputs."""
    module = created.module
    if isinstance(module, Ssd):
        defaults = module.default_boxes(created.spec.resolution)
        attach_detections(model, defaults, module.suppression())
        onnx.checker.check_model(model, full_check=True)
