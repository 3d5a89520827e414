"""Do two implementations compute the same? The numbers, and where the line is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "THRESHOLDS",
    "ParityStatistics",
    "Threshold",
    "compare_outputs",
    "half_line",
    "threshold_for",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How far outputs of one dtype may be apart."""

    relative_l2: float
    """Largest relative L2 error of any input."""
    agreement: float
    """Smallest share of the inputs on which the best class, and the best five, are the same; of a
    segmenter, of the pixels of all inputs."""
    reason: str
    """Why just that much."""
    tie_l2: float | None = None
    """Relative L2 within which two scores are a tie; None for `relative_l2`."""
    top5_agreement: float | None = None
    """The share for the best five where it is another."""

    @property
    def tie(self) -> float:
        """Relative L2 within which two scores are a tie."""
        return self.relative_l2 if self.tie_l2 is None else self.tie_l2


THRESHOLDS = {
    "float32": Threshold(
        relative_l2=1e-4,
        agreement=1.0,
        reason=(
            "two libraries add the up to 1024 products of a value in different orders: an error of "
            "about sqrt(1024) * 2^-24 = 2e-6 a layer; the deepest MobileNets have some 50 layers, "
            "and if all errors pointed the same way they would add up to 1e-4. A wrong weight or "
            "border gives 1e-2 and more"
        ),
    ),
    "float16": Threshold(
        relative_l2=0.1,
        agreement=1.0,
        reason=(
            "weights, every layer's output and every partial sum are rounded to 11 bits: 2^-11 = "
            "5e-4 each, some 16 times that for a sum of 1024 products whose errors are as often up "
            "as down, and networks of random weights let errors grow by a tenth a layer. V1 1.0 "
            "was seen at 6e-2 in its last layers, at 2e-2 in its output"
        ),
    ),
    "float16 summed in float32": Threshold(
        relative_l2=0.05,
        agreement=1.0,
        reason=(
            "as float16, without the partial sums: weights and every layer's output are rounded to "
            "11 bits"
        ),
    ),
    "bfloat16": Threshold(
        relative_l2=0.25,
        agreement=1.0,
        reason=(
            "weights and every layer's output are rounded to 8 bits: 2^-8 = 4e-3 each, eight times "
            "what float16 loses; sums are float32. V1 0.25 was seen at 0.11 in its last layers, at "
            "0.04 in its output"
        ),
    ),
    "int8": Threshold(
        relative_l2=0.05,
        agreement=0.995,
        reason=(
            "integers are computed exactly, and rounded as ONNX Runtime rounds them; only sums and "
            "products of two tensors are rounded by it in another order, and may be one step off. "
            "One step of 255 everywhere is 1 to 2 percent of an output; two scores a step apart "
            "can change places"
        ),
        tie_l2=0.0,
        top5_agreement=0.95,
    ),
    "int8 against float32": Threshold(
        relative_l2=1.0,
        agreement=0.0,
        reason=(
            "what quantization loses is no error of the compiler's; here it only has to be less "
            "than the output itself. `quantize` reports it layer by layer, and pictures with "
            "labels (--images) say what it costs"
        ),
    ),
}
"""Keyed by the dtype of the output, or for quantized models by what is compared with what."""

_EXACT = Threshold(relative_l2=0.0, agreement=1.0, reason="integers are equal or not")


def threshold_for(dtype: str) -> Threshold:
    """Return the threshold for outputs of `dtype`; integers must be equal."""
    return THRESHOLDS.get(dtype, _EXACT)


def half_line(dtype: str, accumulate: str | None) -> str | None:
    """Return the line of `THRESHOLDS` for a model that is stored in 16 bits, None for others."""
    if dtype == "float16" and accumulate == "float32":
        return "float16 summed in float32"
    return dtype if dtype in ("float16", "bfloat16") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityStatistics:
    """One output of the compiled model against that of a reference, over all inputs."""

    reference: str
    """`onnxruntime` or `pytorch`."""
    output: str
    """Name of the output."""
    dtype: str
    judged_as: str
    """The line of `THRESHOLDS` that it is held against: its dtype, that of a model stored in 16
    bits, or for quantized models `int8` or `int8 against float32`."""
    inputs: int
    """How many inputs were compared."""
    max_abs_error: float
    """Largest difference of any value, in the output's own unit."""
    max_abs_reference: float
    """Largest magnitude in the reference: what `max_abs_error` is to be seen against."""
    relative_l2: float
    """|y - r| / |r| in the Euclidean norm, the largest of all inputs."""
    cosine: float
    """Cosine of the angle between y and r, the smallest of all inputs."""
    snr_db: float | None
    """10 log10(|r|^2 / |y - r|^2), the smallest of all inputs; None where every value is equal."""
    top1_agreement: float | None
    """Share of the inputs on which both prefer the same class, or of a segmenter's pixels; None for
    neither.

    A tie within the rounding that the threshold grants is no disagreement.
    """
    top5_agreement: float | None
    """Share of the inputs whose five best classes are the same set; None below six classes."""
    not_finite: int
    """Values that are infinite or NaN in one of the two and not the same in the other."""

    @property
    def threshold(self) -> Threshold:
        """What these numbers are held against."""
        return threshold_for(self.judged_as)

    @property
    def failures(self) -> tuple[str, ...]:
        """What exceeds the threshold, in words; empty where nothing does."""
        limit = self.threshold
        found = []
        if self.not_finite:
            found.append(f"{self.not_finite} values are not finite")
        if not self.relative_l2 <= limit.relative_l2:
            found.append(f"relative L2 {self.relative_l2:.2g} (at most {limit.relative_l2:g})")
        top5 = limit.agreement if limit.top5_agreement is None else limit.top5_agreement
        for name, share, least in (
            ("top-1", self.top1_agreement, limit.agreement),
            ("top-5", self.top5_agreement, top5),
        ):
            if share is not None and share < least:
                found.append(f"{name} agreement {share:.2%} (at least {100 * least:g}%)")
        return tuple(found)

    @property
    def is_within(self) -> bool:
        """Whether nothing exceeds the threshold."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, the threshold and the verdict among them."""
        values = {name: _finite(value) for name, value in asdict(self).items()}
        return {**values, "threshold": asdict(self.threshold), "within": self.is_within}


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare_outputs(
    reference: str,
    output: str,
    expected: Sequence[Array],
    found: Sequence[Array],
    *,
    classes: bool = True,
    pixels: bool = False,
    judged_as: str | None = None,
) -> ParityStatistics:
    """Compare an output's values, one array an input, with those of a reference.

    Args:
        reference: name of the reference.
        output: name of the output.
        expected: what the reference computed.
        found: what the compiled model computed, in the same order and shape.
        classes: a two-dimensional output holds the scores of classes.
        pixels: a four-dimensional one holds them for every pixel, (N, classes, H, W).
        judged_as: the line of `THRESHOLDS` to hold it against; None for the output's dtype.
    """
    dtype = str(found[0].dtype)
    judged_as = judged_as or dtype
    limit = threshold_for(judged_as).tie
    relative, cosines, signal_to_noise = [], [], []
    top1: list[bool] = []
    top5: list[bool] = []
    max_error = max_reference = 0.0
    not_finite = 0
    for theirs, ours in zip(expected, found, strict=True):
        if theirs.shape != ours.shape:
            raise ValueError(f"output {output}: shapes {theirs.shape} and {ours.shape} differ")
        r, y = theirs.astype(np.float64), ours.astype(np.float64)
        same = (r == y) | (np.isnan(r) & np.isnan(y))
        usable = np.isfinite(r) & np.isfinite(y)
        not_finite += int(np.count_nonzero(~usable & ~same))
        r, y = np.where(usable, r, 0.0), np.where(usable, y, 0.0)
        error = y - r
        max_error = max(max_error, float(np.abs(error).max(initial=0)))
        max_reference = max(max_reference, float(np.abs(r).max(initial=0)))
        ratio = _ratio(float(np.linalg.norm(error)), float(np.linalg.norm(r)))
        relative.append(ratio)
        cosines.append(_cosine(r.ravel(), y.ravel()))
        if ratio > 0:
            signal_to_noise.append(-20 * math.log10(ratio) if ratio < math.inf else -math.inf)
        if classes and r.ndim == 2 and r.shape[1] > 1:
            top1 += [_same_best(a, b, 1, limit) for a, b in zip(r, y, strict=True)]
            if r.shape[1] > 5:
                top5 += [_same_best(a, b, 5, limit) for a, b in zip(r, y, strict=True)]
        elif pixels and r.ndim == 4 and r.shape[1] > 1:
            top1 += _same_best_pixels(r, y, limit).ravel().tolist()
    return ParityStatistics(
        reference=reference,
        output=output,
        dtype=dtype,
        judged_as=judged_as,
        inputs=len(found),
        max_abs_error=max_error,
        max_abs_reference=max_reference,
        relative_l2=max(relative),
        cosine=min(cosines),
        snr_db=min(signal_to_noise, default=None),
        top1_agreement=sum(top1) / len(top1) if top1 else None,
        top5_agreement=sum(top5) / len(top5) if top5 else None,
        not_finite=not_finite,
    )


def _ratio(error: float, reference: float) -> float:
    if error == 0:
        return 0.0
    return error / reference if reference > 0 else math.inf


def _cosine(r: Array, y: Array) -> float:
    norms = float(np.linalg.norm(r) * np.linalg.norm(y))
    if norms == 0:
        return 1.0 if not r.any() and not y.any() else 0.0
    return float(np.dot(r, y)) / norms


def _same_best(r: Array, y: Array, count: int, limit: float) -> bool:
    """Tell whether the best `count` classes of `y` are also best in `r`, up to a tie in `r`.

    Two scores of an error vector no longer than limit * |r| can change places only if they are
    within sqrt(2) of that length.
    """
    chosen = np.argpartition(-y, count - 1)[:count]
    last_place = np.partition(r, -count)[-count]
    tie = math.sqrt(2) * limit * float(np.linalg.norm(r))
    return bool((r[chosen] >= last_place - tie).all())


def _same_best_pixels(r: Array, y: Array, limit: float) -> npt.NDArray[np.bool_]:
    """Tell for each pixel whether the best class of `y` is also best in `r`, up to a tie in `r`.

    As `_same_best`, with the error spread evenly: a pixel's share of limit * |r| is what its own
    scores make, or an average pixel's.

    Shapes:
        r and y (N, classes, H, W) -> (N, H, W).
    """
    lengths = np.linalg.norm(r, axis=1)
    average = math.sqrt(float(np.mean(lengths**2)))
    tie = math.sqrt(2) * limit * np.maximum(lengths, average)
    chosen = np.take_along_axis(r, y.argmax(axis=1)[:, None], axis=1)[:, 0]
    same: npt.NDArray[np.bool_] = chosen >= r.max(axis=1) - tie
    return same
