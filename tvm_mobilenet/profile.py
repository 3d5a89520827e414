"""Where the time of an inference goes: every layer, and how near it comes to the machine's peak."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tvm_mobilenet.manifest import Manifest
from tvm_mobilenet.peak import Peak, measure_peak
from tvm_mobilenet.records import LayerRecord
from tvm_mobilenet.series import BoardRecord
from tvm_mobilenet.targets import TargetSpec

__all__ = ["LayerTime", "NominalPeak", "Profile", "profile_from"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One kernel call of an inference."""

    index: int
    kernel: str
    family: str
    tensor: str | None
    median_ms: float
    share: float
    """Of the sum of all layers."""
    gflops: float | None
    """Billions of operations a second, a multiply-add counted as two; None where there is none."""
    share_of_peak: float | None
    """`gflops` over the measured peak."""
    gbytes_per_s: float
    """What the call must touch at least once, over its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Every layer of an inference, timed in its place."""

    layers: tuple[LayerTime, ...]
    repeat: int
    """How many inferences the medians are of."""
    sum_ms: float
    """Of the layers' medians."""
    whole_ms: float
    """Median of whole inferences, timed without looking inside."""
    gflops: float
    """All multiply-adds over `whole_ms`."""
    share_of_peak: float | None
    peak: Peak | None
    """None where there is none; `peak_note` says why."""
    peak_note: str | None = None
    """Where the peak is not a measured one."""

    @property
    def unattributed_ms(self) -> float:
        """What the whole takes beyond its layers: calls and allocation.

        Negative where timing the layers one by one cost more than that.
        """
        return self.whole_ms - self.sum_ms

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "unattributed_ms": self.unattributed_ms}


@dataclass(frozen=True, slots=True, kw_only=True)
class NominalPeak:
    """What stands for the peak of a board, where nothing can be measured but the model."""

    clock_mhz: float | None
    """The highest clock that the board reports; None for the target's nominal one."""
    is_emulated: bool

    @classmethod
    def of(cls, board: BoardRecord) -> NominalPeak:
        """Take what a board says of itself."""
        facts = board.before
        cpus = [cpu for cpu in facts.cpus if cpu.cpu in (board.cpus or (cpu.cpu,))] if facts else []
        return cls(
            clock_mhz=max((cpu.max_mhz for cpu in cpus if cpu.max_mhz), default=None),
            is_emulated=facts is not None and facts.emulated,
        )

    def peak(self, target: TargetSpec, threads: int) -> tuple[Peak | None, str | None]:
        """Return the roof that the figures make, and a note of where it comes from."""
        if self.is_emulated:
            return None, "an emulated board has no peak"
        cpu = target.cpu
        lanes = cpu.lanes("float32")
        clock_mhz = self.clock_mhz or cpu.freq_mhz
        note = (
            f"computed, not measured: {threads} threads x {cpu.fma_units} multiply-adds of "
            f"{lanes} values a cycle x {clock_mhz:.0f} MHz ("
            f"{'reported by the board' if self.clock_mhz else f'nominal, {target.name}'})"
        )
        gflops = 2 * lanes * cpu.fma_units * threads * clock_mhz / 1e3
        return Peak(gflops=gflops, threads=threads, lanes=lanes, chains=0), note


def profile_from(
    manifest: Manifest,
    layer_times_ms: Sequence[Sequence[float]],
    whole_ms: float,
    threads: int,
    nominal: NominalPeak | None = None,
) -> Profile:
    """Make a profile of the times of every layer, one row an inference.

    Measures this machine's peak for the number of threads, once a process, unless a `nominal` one
    stands for a board's.
    """
    medians = np.median(np.asarray(layer_times_ms), axis=0).tolist()
    total_ms = sum(medians)
    target = TargetSpec.model_validate(manifest.target.spec)
    if nominal is not None:
        found = nominal.peak(target, threads)
    else:
        found = _peak_for(target, threads)
    peak, note = found
    macs = sum(layer.macs for layer in manifest.layers)
    gflops = _gflops(macs, whole_ms)
    return Profile(
        layers=tuple(
            _layer_time(layer, median_ms, total_ms, peak)
            for layer, median_ms in zip(manifest.layers, medians, strict=True)
        ),
        repeat=len(layer_times_ms),
        sum_ms=total_ms,
        whole_ms=whole_ms,
        gflops=gflops,
        share_of_peak=gflops / peak.gflops if peak else None,
        peak=peak,
        peak_note=note,
    )


def _layer_time(
    layer: LayerRecord, median_ms: float, total_ms: float, peak: Peak | None
) -> LayerTime:
    gflops = _gflops(layer.macs, median_ms) if layer.macs else None
    return LayerTime(
        index=layer.index,
        kernel=layer.kernel,
        family=layer.family,
        tensor=layer.tensor,
        median_ms=median_ms,
        share=median_ms / total_ms,
        gflops=gflops,
        share_of_peak=gflops / peak.gflops if peak and gflops is not None else None,
        gbytes_per_s=layer.bytes / median_ms / 1e6,
    )


def _gflops(macs: int, time_ms: float) -> float:
    return 2 * macs / time_ms / 1e6


def _peak_for(target: TargetSpec, threads: int) -> tuple[Peak | None, str | None]:
    try:
        return measure_peak(target, threads), None
    except Exception as err:  # a board that has TVM's runtime alone cannot build the kernel
        note = f"the peak could not be measured: {' '.join(str(err).split())[:200]}"
        logger.warning(note)
        return None, note
