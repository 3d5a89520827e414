"""One call that compares a compiled model with its references and says whether it agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_mobilenet.artifact import Artifact, open_artifact
from tvm_mobilenet.datasets import DIGITS, Split, load_dataset
from tvm_mobilenet.detection.outputs import aligned, is_detector
from tvm_mobilenet.errors import ParityError, SpecError
from tvm_mobilenet.inputs import image_input, picture_batches, seeded
from tvm_mobilenet.local_device import LocalDevice
from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.models.preprocess import decode_image, normalize, square_pixels
from tvm_mobilenet.protocols import Device, Executor, NoProgress, Progress
from tvm_mobilenet.records import Preprocessing
from tvm_mobilenet.verify.accuracy import (
    COMPILED,
    AccuracyReport,
    LabelledFiles,
    compare_accuracy,
    list_pictures,
)
from tvm_mobilenet.verify.drift import DriftReport, compare_layers
from tvm_mobilenet.verify.engines import (
    NotComparableError,
    OnnxRuntime,
    PyTorch,
    outputs_in_onnx_layout,
)
from tvm_mobilenet.verify.parity import (
    ParityStatistics,
    compare_outputs,
    half_line,
    threshold_for,
)

__all__ = ["DEFAULT_INPUTS", "VerifyReport", "verify"]

DEFAULT_INPUTS = 16

Array = npt.NDArray[Any]


class _Engine(Protocol):
    name: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was compared, how far apart it is, and the verdict."""

    artifact: str
    """Path of the folder."""
    model: str
    weights: str
    is_random: bool
    """True where the weights are random: the outputs can agree, but mean nothing."""
    target: str
    threads: int
    source: str
    """`seed 0`, or where the pictures came from."""
    inputs: int
    """How many inputs, or pictures."""
    comparisons: tuple[ParityStatistics, ...]
    """Each output against each reference."""
    not_compared: Mapping[str, str]
    """References that were left out, and why."""
    accuracy: AccuracyReport | None = None
    """Where the pictures came with labels."""
    drift: DriftReport | None = None
    """Where it was asked for."""

    @property
    def is_within(self) -> bool:
        """Whether every comparison is within its threshold."""
        return all(statistics.is_within for statistics in self.comparisons)

    def check(self) -> None:
        """Raise unless every comparison is within its threshold.

        Raises:
            ParityError: what differs most, and the layer where it begins if drift was measured; it
                carries this report as a dictionary.
        """
        failed = next((found for found in self.comparisons if not found.is_within), None)
        if failed is None:
            return
        if self.drift is None:
            hint = "run verify with --drift to find the layer"
        elif self.drift.first_departed is None:
            hint = "no single layer departs; look at the outputs"
        else:
            first = self.drift.first_departed
            hint = f"the first layer that departs is {first.index}, {first.kernel} ({first.tensor})"
        raise ParityError(
            f"artifact {self.artifact}: output {failed.output!r} differs from {failed.reference}: "
            f"{', '.join(failed.failures)}; {hint}",
            self.to_dict(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "artifact": self.artifact,
            "model": self.model,
            "weights": self.weights,
            "is_random": self.is_random,
            "target": self.target,
            "threads": self.threads,
            "source": self.source,
            "inputs": self.inputs,
            "within": self.is_within,
            "comparisons": [statistics.to_dict() for statistics in self.comparisons],
            "not_compared": dict(self.not_compared),
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "drift": self.drift.to_dict() if self.drift else None,
        }


def verify(
    path: Path | str,
    *,
    inputs: int = DEFAULT_INPUTS,
    images: Path | str | Split | None = None,
    drift: bool = False,
    weights: Path | str | None = None,
    float_onnx: Path | str | None = None,
    threads: int | None = None,
    seed: int = 0,
    device: Device | None = None,
    cpus: Sequence[int] = (),
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare an artifact with ONNX Runtime, and with PyTorch where the model is ours.

    Args:
        path: the artifact folder.
        inputs: how many seeded inputs; `images` takes their place.
        images: a folder of pictures, one sub-folder for each class if they are labelled; `digits`
            for the held-out scans; or a part of a data set. With labels, accuracy is compared too.
        drift: compare every layer's output as well.
        weights: the weight file of a trained model, where it lies neither in the current folder nor
            beside the artifact.
        float_onnx: for `drift` of a quantized model: the float one that it was made from; None for
            the quantized one without rounding.
        threads: how many threads the compiled model uses.
        seed: of the inputs.
        device: where the compiled model runs; None for this machine. The references run here.
        cpus: the processors to compute on; empty for the device's choice.
        progress: told of every input.

    Returns:
        The report; `check` turns a disagreement into a `ParityError`.

    Raises:
        ArtifactError: the artifact is damaged, for another machine, or without its ONNX file.
        UsageError: a folder without pictures, a wrong weight file, a number out of range.
        DeviceError: the board cannot be reached, or has gone in the middle.
    """
    device = device or LocalDevice()
    artifact = open_artifact(path, machine=device.machine, runnable=device.machine is not None)
    progress = progress or NoProgress()
    manifest = artifact.manifest
    samples = _samples(artifact, inputs, images, seed)
    engines: list[_Engine] = [OnnxRuntime(artifact)]
    not_compared: dict[str, str] = {}
    try:
        engines.append(PyTorch(artifact, Path(weights) if weights is not None else None))
    except NotComparableError as err:
        not_compared[PyTorch.name] = str(err)
    with device.open(artifact, threads, cpus) as executor:
        collected = _collect(artifact, executor, engines, samples, progress)
        layers = None
        if drift:
            layers = compare_layers(
                artifact,
                executor,
                next(samples.batches())[0],
                Path(float_onnx) if float_onnx is not None else None,
            )
        return VerifyReport(
            artifact=str(path),
            model=manifest.model.name,
            weights=manifest.model.weights,
            is_random=manifest.model.is_random,
            target=manifest.target.name,
            threads=executor.threads,
            source=samples.source,
            inputs=samples.count,
            comparisons=tuple(_comparisons(collected, manifest)),
            not_compared=not_compared,
            accuracy=_accuracy(samples, collected),
            drift=layers,
        )


class _Samples:
    """Inputs to compare on, made again at every pass rather than kept."""

    def __init__(self, artifact: Artifact, source: str, count: int) -> None:
        self.manifest = artifact.manifest
        self.source = source
        self.count = count
        self.pictures: LabelledFiles | None = None
        self.seed = 0

    def batches(self) -> Iterator[tuple[dict[str, Array], int]]:
        """Yield the inputs, and how many of the first dimension's entries count in each."""
        if self.pictures is None:
            for values in seeded(self.manifest, self.count, self.seed):
                yield values, _batch_of(values)
        else:
            _, preprocessing = image_input(self.manifest)
            prepared = (_prepare(source, preprocessing) for source in self.pictures.sources)
            yield from picture_batches(self.manifest, prepared)


def _batch_of(values: Mapping[str, Array]) -> int:
    first = next(iter(values.values()))
    return first.shape[0] if first.ndim else 1


def _prepare(source: Any, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    image = decode_image(source) if isinstance(source, Path) else source
    batch = normalize(square_pixels(image, preprocessing)[None], preprocessing)
    return batch.reshape(batch.shape[1:])


def _samples(
    artifact: Artifact, inputs: int, images: Path | str | Split | None, seed: int
) -> _Samples:
    if images is None:
        if inputs < 1:
            raise SpecError(f"inputs {inputs}: at least one input is needed to compare on")
        samples = _Samples(artifact, f"seed {seed}", inputs)
        samples.seed = seed
        return samples
    manifest = artifact.manifest
    _, preprocessing = image_input(manifest)
    if str(images) == DIGITS:
        dataset = load_dataset(DIGITS, resolution=preprocessing.crop, preprocessing=preprocessing)
        pictures, source = _of_split(dataset.held_out), f"{DIGITS} (held out)"
    elif isinstance(images, Split):
        pictures, source = _of_split(images), "data set"
    else:
        pictures, source = list_pictures(Path(images), manifest), str(images)
    samples = _Samples(artifact, source, len(pictures.sources))
    samples.pictures = pictures
    return samples


def _of_split(split: Split) -> LabelledFiles:
    sources = tuple(split.sources)
    names = tuple(
        str(source) if isinstance(source, Path) else f"scan {index}"
        for index, source in enumerate(sources)
    )
    return LabelledFiles(names, sources, split.labels)


_Collected = dict[str, dict[str, list[Array]]]
"""By engine, by output: one array an input, cut to the entries that count."""


def _collect(
    artifact: Artifact,
    executor: Executor,
    engines: Sequence[_Engine],
    samples: _Samples,
    progress: Progress,
) -> _Collected:
    outputs = artifact.manifest.outputs
    collected: _Collected = {
        name: {info.name: [] for info in outputs}
        for name in (COMPILED, *(engine.name for engine in engines))
    }

    def keep(engine: str, values: Mapping[str, Array], count: int, whole: int) -> None:
        for name, value in values.items():
            is_batched = value.ndim > 0 and value.shape[0] == whole
            collected[engine][name].append(value[:count] if is_batched else value)

    progress.start("comparing", samples.count)
    for inputs, count in samples.batches():
        whole = _batch_of(inputs)
        compiled = outputs_in_onnx_layout(executor.run(inputs), outputs)
        keep(COMPILED, compiled, count, whole)
        for engine in engines:
            keep(engine.name, engine.run(inputs), count, whole)
        progress.advance(count if samples.pictures is not None else 1)
    progress.done()
    return collected


def _comparisons(collected: _Collected, manifest: Manifest) -> Iterator[ParityStatistics]:
    is_integer = manifest.dtype == "int8"
    pixels, detects = _segments(manifest), is_detector(manifest.outputs)
    for engine, expected in collected.items():
        if engine == COMPILED:
            continue
        found = collected[COMPILED]
        if detects:
            found, expected = _in_one_order(found, expected, threshold_for(manifest.dtype).tie)
        for name in expected:
            judged_as = half_line(manifest.dtype, manifest.accumulate)
            if is_integer:
                judged_as = "int8" if engine == OnnxRuntime.name else "int8 against float32"
            yield compare_outputs(
                engine,
                name,
                expected[name],
                found[name],
                classes=not detects,
                pixels=pixels,
                judged_as=judged_as,
            )


def _in_one_order(
    found: dict[str, list[Array]], expected: dict[str, list[Array]], tolerance: float
) -> tuple[dict[str, list[Array]], dict[str, list[Array]]]:
    """Bring a detector's outputs for every input into the reference's order."""
    pairs = []
    for index in range(len(next(iter(expected.values())))):
        one, other = (
            {name: values[index] for name, values in side.items()} for side in (found, expected)
        )
        pairs.append(aligned(one, other, tolerance))
    return (
        {name: [pair[0][name] for pair in pairs] for name in found},
        {name: [pair[1][name] for pair in pairs] for name in expected},
    )


def _segments(manifest: Manifest) -> bool:
    """Tell whether the outputs are scores for every pixel of the pictures that come in."""
    sides = {info.shape[2:] for info in (*manifest.inputs, *manifest.outputs)}
    return len(sides) == 1 and all(len(info.shape) == 4 for info in manifest.outputs)


def _accuracy(samples: _Samples, collected: _Collected) -> AccuracyReport | None:
    if samples.pictures is None or samples.pictures.labels is None:
        return None
    (output,) = collected[COMPILED] if len(collected[COMPILED]) == 1 else (None,)
    if output is None or collected[COMPILED][output][0].ndim != 2:
        return None
    scores = {engine: np.concatenate(found[output]) for engine, found in collected.items()}
    return compare_accuracy(samples.pictures.names, samples.pictures.labels, scores)
