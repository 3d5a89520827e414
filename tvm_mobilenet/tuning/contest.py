"""Contests: the best candidates of a round meet the incumbent, turn by turn."""

from __future__ import annotations

import logging
import random

from tvm_mobilenet.tuning.ledger import Ledger
from tvm_mobilenet.tuning.measurer import Measurer
from tvm_mobilenet.tuning.state import Candidate, TaskState
from tvm_mobilenet.tuning.statistics import Ratio, wins
from tvm_mobilenet.tuning.workers import CandidateError

__all__ = ["compete"]

logger = logging.getLogger(__name__)

_ROUNDS = 21
_ONE_THREAD_ROUNDS = 11
_ONE_THREAD_LOSS = 1.02
"""What is won with several threads may cost so much with one; more is refused."""
_START = ""


def compete(
    state: TaskState,
    finalists: list[Candidate],
    measurer: Measurer,
    ledger: Ledger,
    rng: random.Random,
) -> bool:
    """Let finalists compete with the incumbent, and tell whether one takes its place.

    A winner must win twice. The second contest has memory of its own: where arrays happen to lie
    can decide one. Where figures are exact there is no contest: the winner is measured once more.
    """
    if measurer.is_exact:
        return _compare(state, finalists, measurer, ledger)
    try:
        first = _contest(state, finalists, measurer, rng)
        winner = min(finalists, key=lambda candidate: first[candidate.key].value)
        if not wins(first[winner.key]):
            return False
        finalists = [winner]
        second = _contest(state, finalists, measurer, rng)
        if not wins(second[winner.key]) or not _holds_alone(state, winner, measurer, rng):
            return False
    except CandidateError as err:
        if len(finalists) > 1:
            return any([compete(state, [one], measurer, ledger, rng) for one in finalists])
        _reject(state, finalists[0], err, ledger)
        return False
    _accept(state, winner, second[_START].value, ledger)
    return True


def _compare(
    state: TaskState, finalists: list[Candidate], measurer: Measurer, ledger: Ledger
) -> bool:
    """Let the cheapest finalist take the incumbent's place where it costs less, exactly."""
    winner = min(finalists, key=lambda candidate: candidate.cost)
    if winner.cost >= state.incumbent.cost:
        return False
    try:
        again = measurer.measure(state.entrant(winner), None)
        if again.cost != winner.cost:
            raise CandidateError(f"it cost {winner.cost:.6f} first and {again.cost:.6f} then")
    except CandidateError as err:
        _reject(state, winner, err, ledger)
        return False
    _accept(state, winner, winner.cost / state.start.cost, ledger)
    return True


def _accept(state: TaskState, winner: Candidate, ratio: float, ledger: Ledger) -> None:
    state.incumbent = winner
    state.ratio = ratio
    state.is_confirmed = True
    ledger.note(state.task, winner, "accepted", ratio)


def _reject(state: TaskState, finalist: Candidate, err: Exception, ledger: Ledger) -> None:
    finalist.note, finalist.figures = str(err), None
    state.measured.pop(finalist.key, None)
    ledger.note(state.task, finalist, "rejected")
    logger.info("%s: a finalist was rejected: %s", state.task.name, err)


def _contest(
    state: TaskState, finalists: list[Candidate], measurer: Measurer, rng: random.Random
) -> dict[str, Ratio]:
    """Return finalists' ratios to the incumbent; at `_START` the first's to the computed."""
    entrants = [state.start, state.incumbent, *finalists]
    times = measurer.contest(
        [state.entrant(candidate) for candidate in entrants],
        rounds=_ROUNDS,
        threads=measurer.threads,
        seed=rng.randrange(1 << 30),
    )
    ratios = {c.key: Ratio.of(times[2 + i], times[1]) for i, c in enumerate(finalists)}
    return ratios | {_START: Ratio.of(times[2], times[0])}


def _holds_alone(
    state: TaskState, winner: Candidate, measurer: Measurer, rng: random.Random
) -> bool:
    """Tell whether a winner is no worse where a single thread computes."""
    if measurer.threads == 1:
        return True
    times = measurer.contest(
        [state.entrant(state.incumbent), state.entrant(winner)],
        rounds=_ONE_THREAD_ROUNDS,
        threads=1,
        seed=rng.randrange(1 << 30),
    )
    return Ratio.of(times[1], times[0]).value <= _ONE_THREAD_LOSS
