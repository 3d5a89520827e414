"""What candidates are measured on, as a search sees it: this machine, or boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from tvm_mobilenet.schedule.workload import TunableWorkload

__all__ = ["Entrant", "Figures", "Measurer", "unit"]


@dataclass(frozen=True)
class Entrant:
    """A built candidate: what is computed, how, and the library in base 64."""

    workload: Mapping[str, Any]
    plan: Mapping[str, Any]
    library: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What measuring one candidate gave."""

    cost: float
    """Milliseconds a call, or millions of weighted instructions."""
    repeats: int
    is_tight: bool
    error: float
    """Largest difference to the reference."""
    counts: Mapping[str, int] | None = None
    """Retired instructions by class, where they are what counts."""
    clock_mhz: float | None = None
    """Of the fastest processor, right after; None where the device does not say."""
    temperature_c: float | None = None
    throttled: str = ""
    """What suggests that the device lowered its clock meanwhile; empty where nothing does."""


class Measurer(Protocol):
    """Something that candidates can be measured on.

    `CandidateError` from `measure` or `contest` rejects the candidate; any other error ends the
    search.
    """

    @property
    def threads(self) -> int:
        """How many threads compute."""

    @property
    def cache(self) -> Literal["cold", "warm"]:
        """Where the weights are when a call begins."""

    @property
    def cost(self) -> Literal["latency", "instructions"]:
        """What is measured."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `Conditions` has of the device: `device`, `governor`, `cost`, `is_emulated`, ..."""

    @property
    def is_exact(self) -> bool:
        """Whether a figure comes out the same each time: then nothing need be measured twice."""

    @property
    def is_here(self) -> bool:
        """Whether what is built at the same time on this machine would disturb it."""

    @property
    def slots(self) -> int:
        """How many candidates can be measured at once, from as many threads."""

    def floor(self, workload: TunableWorkload) -> float:
        """Return the cost that no kernel can go below."""

    def measure(self, entrant: Entrant, best: float | None) -> Figures:
        """Check a candidate's result, then measure it; less carefully where `best` is far off."""

    def contest(
        self, entrants: Sequence[Entrant], *, rounds: int, threads: int, seed: int
    ) -> list[list[float]]:
        """Measure candidates of one workload turn by turn; returns each one's cost a round."""

    def close(self) -> None:
        """Let go of the device."""


def unit(cost: Literal["latency", "instructions"]) -> str:
    """Return the unit of a cost."""
    return "ms" if cost == "latency" else "Minstr"
