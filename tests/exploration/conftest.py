"""A scripted machine: costs by a formula, so that the right choice is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tvm_mobilenet.exploration.candidates import Candidate
from tvm_mobilenet.exploration.journal import Conditions, ProbeRecord

CONDITIONS = Conditions(
    target="host",
    fingerprint="f",
    device="a scripted machine",
    threads=1,
    unit="ms",
    logs=True,
    tvm_mobilenet="0",
)

FAMILY_FACTORS = {"v1": 1.0, "v2": 1.35, "v3": 1.6, "v4": 1.15}
"""Of the time for a multiply-add; of the order of what is measured on this project's kernels."""


@dataclass
class ScriptedProber:
    """Costs that are nearly, not quite, a rate times the multiply-adds."""

    conditions: Conditions = CONDITIONS
    ms_per_gmac: float = 25.0
    noise: float = 0.05
    seed: int = 0
    fail: Callable[[Candidate], Exception | None] = lambda candidate: None
    probed: list[str] = field(default_factory=list)

    def cost(self, candidate: Candidate) -> float:
        factor = FAMILY_FACTORS[candidate.family.split("_")[1]]
        rng = random.Random(f"{self.seed} {candidate.name}")
        overhead = 0.08 if self.conditions.unit == "ms" else 0.0
        factor /= 3.0 if candidate.dtype == "int8" else 1.0
        exact = self.ms_per_gmac * candidate.macs / 1e9 * factor + overhead
        return exact * math.exp(rng.uniform(-self.noise, self.noise))

    def record(self, candidate: Candidate) -> ProbeRecord:
        cost = self.cost(candidate)
        is_timed = self.conditions.unit == "ms"
        return ProbeRecord(
            model=candidate.model,
            dtype=candidate.dtype,
            conditions=self.conditions,
            cost=cost,
            low=0.98 * cost if is_timed else None,
            high=1.02 * cost if is_timed else None,
            size_bytes=candidate.weight_bytes + 100_000,
            peak_bytes=2 * candidate.weight_bytes + 4_000_000 if is_timed else None,
            date="2026-11-24T00:00:00+00:00",
        )

    def probe(self, candidate: Candidate) -> ProbeRecord:
        self.probed.append(candidate.name)
        error = self.fail(candidate)
        if error is not None:
            raise error
        return self.record(candidate)


@pytest.fixture
def prober() -> ScriptedProber:
    return ScriptedProber()
