"""What a quantization is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvm_mobilenet.errors import SpecError

__all__ = ["METHODS", "Method", "QuantizeOptions"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How ranges are found, what is corrected, and what may stay in float32."""

    method: Method = "mse"
    """Of the activations' ranges: all values, the share `percentile` of them, least entropy lost,
    or least mean squared error."""
    percentile: float = 99.99
    equalize: bool = True
    """Even out channels that share a scale, across neighbouring convolutions."""
    bias_correction: bool = True
    """Take the mean error that rounding the weights causes out of the bias."""
    samples: int = 128
    """Inputs that are looked at, at most."""
    seed: int = 0
    """Of random inputs, and of which pictures are taken."""
    keep_float: tuple[str, ...] | Literal["auto"] = ()
    """Names of convolutions and dense layers to leave in float32, or `auto`."""
    size_budget: float = 0.1
    """With `auto`: by what share of its all-int8 size the file may grow."""
    latency_budget: float = 0.1
    """With `auto`: by what share the time may grow, a float multiply-add taken for four int8."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError(f"method is {self.method!r}; known ones are {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise SpecError(f"percentile is {self.percentile}, but it lies above 50 and up to 100")
        if self.samples < 1:
            raise SpecError(f"samples is {self.samples}, but at least 1 is needed")
        for name in ("size_budget", "latency_budget"):
            value = getattr(self, name)
            if value < 0:
                raise SpecError(f"{name} is {value}, but a budget is 0 or more")
