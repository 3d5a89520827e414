"""From the heads of a detector to its detections, in one kernel.

Class-wise greedy suppression followed by keeping the best N is the same as going through all
candidates from the best on, dropping those that a kept one of their class overlaps, until N are
kept. So nothing is sorted: candidates go into a heap and are taken from it one by one.

1. In parallel over the default boxes: a softmax where some class can pass the threshold at all,
   candidates into the task's own list, their boxes decoded.
2. The lists into one heap. A candidate is one integer, the bits of its score before its place, so
   that of equal scores the lower class goes first and then the earlier box.
3. Until N are kept or the heap is empty: the best candidate, against those kept of its class.

Reference: Liu et al. 2016 (arXiv:1512.02325), section 2.2. `detection/suppression.py` is the same
in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_mobilenet._tvm import PrimFunc, T, tirx
from tvm_mobilenet.detection.suppression import (
    CENTRE_SCALE,
    MAX_SIZE_LOGARITHM,
    SIZE_SCALE,
    Suppression,
)
from tvm_mobilenet.schedule.emit import (
    Expr,
    KernelWriter,
    Memory,
    Parameter,
    Registers,
    broadcast,
    constant,
    split_lanes,
    task_loop,
    when,
    write_kernel,
)
from tvm_mobilenet.schedule.exponential import exponential

if TYPE_CHECKING:
    from tvm_mobilenet.targets import Cpu

__all__ = ["DetectionsPlan", "DetectionsWorkload", "plan_detections", "write_detections"]

_ROWS = 64
"""Default boxes in one task."""
_MARGIN = 1e-3
"""Of the quick test before the softmax: rounding must not lose a candidate."""
_PLACE_BITS = 32
_LAST_PLACE = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class DetectionsWorkload:
    """Offsets and logits of each map to N detections."""

    boxes: tuple[int, ...]
    """Default boxes of each map."""
    classes: int
    """Without the background."""
    suppression: Suppression
    dtype: str = "float32"

    @property
    def macs(self) -> int:
        """Suppression has no multiply-adds worth counting."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes of offsets, logits, default boxes and detections."""
        rows = sum(self.boxes)
        return 4 * (rows * (8 + 1 + self.classes) + 6 * self.suppression.detections + 1)


@dataclass(frozen=True, kw_only=True)
class DetectionsPlan:
    """How detections are computed."""

    lanes: int
    """Elements of a full vector."""
    is_parallel: bool


def plan_detections(workload: DetectionsWorkload, cpu: Cpu) -> DetectionsPlan:
    """Compute the plan: vectors no longer than a row of classes."""
    widest = 1 << (workload.classes.bit_length() - 1)
    return DetectionsPlan(lanes=min(cpu.lanes("float32"), widest), is_parallel=cpu.cores > 1)


def write_detections(workload: DetectionsWorkload, plan: DetectionsPlan) -> PrimFunc:
    """Write the kernel.

    Shapes:
        offsets of each map (1, boxes, 4) f32, logits of each map (1, boxes, 1 + classes) f32,
        default boxes (boxes, 4) f32 -> boxes (1, N, 4) f32, scores (1, N) f32, classes (1, N) i32,
        count (1,) i32
    """
    maps = range(len(workload.boxes))
    kept = workload.suppression.detections
    parameters = [
        *(Parameter(f"offsets{i}", (1, workload.boxes[i], 4)) for i in maps),
        *(Parameter(f"logits{i}", (1, workload.boxes[i], workload.classes + 1)) for i in maps),
        Parameter("defaults", (sum(workload.boxes), 4)),
        Parameter("boxes", (1, kept, 4)),
        Parameter("scores", (1, kept)),
        Parameter("classes", (1, kept), "int32"),
        Parameter("count", (1,), "int32"),
    ]
    return write_kernel("float32", parameters, lambda kernel: _Writer(workload, plan, kernel).all())


class _Writer:
    def __init__(
        self, workload: DetectionsWorkload, plan: DetectionsPlan, kernel: KernelWriter
    ) -> None:
        self.workload = workload
        self.plan = plan
        self.kernel = kernel
        self.limits = workload.suppression
        self.total = sum(workload.boxes)
        self.tasks = [-(-count // _ROWS) for count in workload.boxes]
        self.capacity = _ROWS * workload.classes
        self.corners = kernel.scratch(4 * self.total)
        self.found = kernel.scratch(sum(self.tasks), "int32")
        self.lists = kernel.scratch(sum(self.tasks) * self.capacity, "int64")
        # The lists are moved together at their beginning, which never overtakes what is read.
        self.heap = self.lists

    def all(self) -> None:
        """Write the three steps."""
        first_box = first_task = 0
        for index, tasks in enumerate(self.tasks):
            self._candidates(index, first_box, first_task)
            first_box += self.workload.boxes[index]
            first_task += tasks
        size = Registers(1, "int32", 1)
        self._fill_heap(size)
        self._take_best(size)

    # -- 1: candidates ----------------------------------------------------------------------

    def _candidates(self, index: int, first_box: int, first_task: int) -> None:
        count, classes = self.workload.boxes[index], self.workload.classes
        logits, offsets = self.kernel[f"logits{index}"], self.kernel[f"offsets{index}"]
        parallel = self.plan.is_parallel and self.tasks[index] > 1
        with task_loop(self.tasks[index], parallel) as task:
            number = Registers(1, "int32", 1)
            number[0] = tirx.IntImm("int32", 0)
            scores = self.kernel.scratch(classes)
            with T.serial(0, _ROWS) as row:
                place = task * _ROWS + row
                with when(None if count % _ROWS == 0 else place < count):
                    at = place * (classes + 1)
                    background = T.Bind(logits.load(at))
                    best = T.Bind(self._largest(logits, at + 1))
                    top = T.Bind(T.max(best, background))
                    # No score is above e to the power of this difference.
                    limit = math.log(self.limits.score_threshold) - _MARGIN
                    with when(best - top > tirx.FloatImm("float32", limit)):
                        before = T.Bind(number[0] + 0)
                        self._scores(logits, at, top, background, scores)
                        target = (first_task + task) * self.capacity
                        self._append(scores, first_box + place, target, number)
                        with when(number[0] > before):
                            self._decode(offsets, place * 4, (first_box + place) * 4)
            self.found.store(first_task + task, number[0])

    def _pieces(self) -> list[tuple[int, int]]:
        """Cut the classes into vectors, the last one moved back to end at the last class."""
        lanes, classes = self.plan.lanes, self.workload.classes
        starts = list(range(0, classes - lanes + 1, lanes))
        pieces = [(start, 0) for start in starts]
        done = starts[-1] + lanes
        if done < classes:
            pieces.append((classes - lanes, done - (classes - lanes)))
        return pieces

    def _largest(self, logits: Memory, at: Expr) -> Expr:
        lanes = self.plan.lanes
        value = None
        for start, _ in self._pieces():
            piece = logits.load(at + start, lanes)
            value = piece if value is None else T.max(value, piece)
        return _reduced(value, lanes, T.max)

    def _scores(
        self, logits: Memory, at: Expr, top: Expr, background: Expr, scores: Memory
    ) -> None:
        """Compute the softmax of a row, the background left out."""
        lanes = self.plan.lanes
        sums = Registers(1, "float32", lanes)
        sums[0] = constant(0.0, "float32", lanes)
        for start, repeated in self._pieces():
            piece = logits.load(at + 1 + start, lanes) - broadcast(top, lanes)
            value = exponential(piece, lanes)
            scores.store(start, value, lanes)
            if repeated:
                # The first lanes were summed with the vector before.
                is_new = tirx.Ramp(0, 1, lanes) >= broadcast(tirx.IntImm("int32", repeated), lanes)
                value = tirx.Select(is_new, value, constant(0.0, "float32", lanes))
            sums[0] = sums[0] + value
        total = T.Bind(
            _reduced(sums[0], lanes, lambda a, b: a + b) + exponential(background - top, 1)
        )
        for start, width in split_lanes(self.workload.classes, lanes):
            scores.store(start, scores.load(start, width) / broadcast(total, width), width)

    def _append(self, scores: Memory, place: Expr, target: Expr, number: Registers) -> None:
        """Append a row's candidates; vectors that hold none, which most are, are passed over."""
        lanes = self.plan.lanes
        threshold = tirx.FloatImm("float32", self.limits.score_threshold)

        def vector(start: Expr, width: int) -> None:
            largest = T.Bind(_reduced(scores.load(start, width), width, T.max))
            with when(largest > threshold), T.serial(0, width) as lane:
                self._append_one(scores, T.Bind(start + lane), place, target, number)

        pieces = split_lanes(self.workload.classes, lanes)
        full = sum(1 for _, width in pieces if width == lanes)
        with T.serial(0, full) as index:
            vector(index * lanes, lanes)
        for start, width in pieces[full:]:
            vector(start, width)

    def _append_one(
        self, scores: Memory, label: Expr, place: Expr, target: Expr, number: Registers
    ) -> None:
        threshold = tirx.FloatImm("float32", self.limits.score_threshold)
        with when(scores.load(label) > threshold):
            score = T.Bind(scores.load(label))
            bits = tirx.Cast("int64", tirx.reinterpret("int32", score))
            order = tirx.Cast("int64", label * self.total + place)
            last = tirx.IntImm("int64", _LAST_PLACE)
            key = bits * tirx.IntImm("int64", 1 << _PLACE_BITS) + (last - order)
            self.lists.store(target + number[0], key)
            number[0] = number[0] + 1

    def _decode(self, offsets: Memory, at: Expr, to: Expr) -> None:
        defaults = self.kernel["defaults"]

        def number(value: float) -> Expr:
            return tirx.FloatImm("float32", value)

        for axis in (0, 1):
            size = T.Bind(defaults.load(to + 2 + axis))
            shift = offsets.load(at + axis) * number(CENTRE_SCALE)
            centre = T.Bind(shift * size + defaults.load(to + axis))
            growth = T.min(
                offsets.load(at + 2 + axis) * number(SIZE_SCALE), number(MAX_SIZE_LOGARITHM)
            )
            half = T.Bind(exponential(growth, 1) * size * number(0.5))
            for corner, value in ((axis, centre - half), (2 + axis, centre + half)):
                bounded = T.min(T.max(value, number(0.0)), number(1.0))
                self.corners.store(to + corner, bounded)

    # -- 2: the heap ------------------------------------------------------------------------

    def _fill_heap(self, size: Registers) -> None:
        size[0] = tirx.IntImm("int32", 0)
        with (
            T.serial(0, sum(self.tasks)) as task,
            T.serial(0, self.found.load(task)) as index,
        ):
            self.heap.store(size[0], self.lists.load(task * self.capacity + index))
            size[0] = size[0] + 1
        parents = T.Bind(tirx.floordiv(size[0], tirx.IntImm("int32", 2)))
        with T.serial(0, parents) as index:
            at = T.Bind(parents - 1 - index)
            self._sift(at, T.Bind(self.heap.load(at)), size)

    def _sift(self, start: Expr, item: Expr, size: Registers) -> None:
        """Let an item sink from a hole to where no child is larger."""
        hole, child = Registers(1, "int32", 1), Registers(1, "int32", 1)
        hole[0] = start
        child[0] = hole[0] * 2 + 1
        with T.While(child[0] < size[0]):
            with when(child[0] + 1 < size[0]):
                right, left = self.heap.load(child[0] + 1), self.heap.load(child[0])
                child[0] = child[0] + T.Select(right > left, 1, 0)
            rises = T.Bind(self.heap.load(child[0]))
            with T.If(rises > item):
                with T.Then():
                    self.heap.store(hole[0], rises)
                    hole[0] = child[0]
                    child[0] = hole[0] * 2 + 1
                with T.Else():
                    child[0] = size[0]
        self.heap.store(hole[0], item)

    # -- 3: suppression ---------------------------------------------------------------------

    def _take_best(self, size: Registers) -> None:
        boxes, scores = self.kernel["boxes"], self.kernel["scores"]
        classes = self.kernel["classes"]
        limit = self.limits.detections
        kept, is_kept, rival = (Registers(1, "int32", 1) for _ in range(3))
        # The detections kept of a class are a chain: its last one, and before each the one before.
        last_of = self.kernel.scratch(self.workload.classes, "int32")
        before = self.kernel.scratch(limit, "int32")
        with T.serial(0, self.workload.classes) as label:
            last_of.store(label, tirx.IntImm("int32", -1))
        kept[0] = tirx.IntImm("int32", 0)
        with T.While(tirx.all(size[0] > 0, kept[0] < limit)):
            best = T.Bind(self.heap.load(0))
            size[0] = size[0] - 1
            self._sift(tirx.IntImm("int32", 0), T.Bind(self.heap.load(size[0])), size)
            half = tirx.IntImm("int64", _PLACE_BITS)
            bits = tirx.Cast("int32", tirx.shift_right(best, half))
            last = tirx.IntImm("int64", _LAST_PLACE)
            order = T.Bind(tirx.Cast("int32", last - tirx.bitwise_and(best, last)))
            label = T.Bind(tirx.floordiv(order, self.total))
            at = T.Bind((order - label * self.total) * 4)
            box = [T.Bind(self.corners.load(at + corner)) for corner in range(4)]
            is_kept[0] = tirx.IntImm("int32", 1)
            rival[0] = last_of.load(label)
            with T.While(rival[0] >= 0):
                other = [T.Bind(boxes.load(rival[0] * 4 + corner)) for corner in range(4)]
                with T.If(self._is_overlapped(box, other)):
                    with T.Then():
                        is_kept[0] = tirx.IntImm("int32", 0)
                        rival[0] = tirx.IntImm("int32", -1)
                    with T.Else():
                        rival[0] = before.load(rival[0])
            with when(is_kept[0] == 1):
                for corner in range(4):
                    boxes.store(kept[0] * 4 + corner, box[corner])
                scores.store(kept[0], tirx.reinterpret("float32", bits))
                classes.store(kept[0], label)
                before.store(kept[0], last_of.load(label))
                last_of.store(label, kept[0])
                kept[0] = kept[0] + 1
        self.kernel["count"].store(0, kept[0])
        with T.serial(0, limit) as index, when(index >= kept[0]):
            for corner in range(4):
                boxes.store(index * 4 + corner, tirx.FloatImm("float32", 0.0))
            scores.store(index, tirx.FloatImm("float32", 0.0))
            classes.store(index, tirx.IntImm("int32", -1))

    def _is_overlapped(self, box: list[Expr], other: list[Expr]) -> Expr:
        zero = tirx.FloatImm("float32", 0.0)
        width = T.max(T.min(box[2], other[2]) - T.max(box[0], other[0]), zero)
        height = T.max(T.min(box[3], other[3]) - T.max(box[1], other[1]), zero)
        shared = T.Bind(width * height)
        own, theirs = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
        union = own + theirs - shared
        limit = tirx.FloatImm("float32", self.limits.iou_threshold)
        # Compared as a product: 0 / 0 of two empty boxes is no overlap.
        return shared > limit * union


def _reduced(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine the lanes of a vector into one, half with half."""
    while lanes > 1:
        lanes //= 2
        vector = T.Bind(vector)
        low = tirx.Shuffle([vector], list(range(lanes)))
        high = tirx.Shuffle([vector], list(range(lanes, 2 * lanes)))
        vector = combine(low, high)
    return vector
