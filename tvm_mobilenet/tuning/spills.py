"""Whether a kernel's registers suffice, read off the assembly that LLVM writes.

A vector that is both stored to the stack and loaded from the same place within an innermost loop
did not fit into the register file. One that is only loaded there, a constant or a filter, costs no
more than any load, and is none.
"""

from __future__ import annotations

import re

__all__ = ["innermost_loops", "spilled_vectors"]

_JUMP = re.compile(r"\s+(?:b\.\w+|cbn?z|tbn?z|j\w+)\s.*?(\.L\w+)")
_LABEL = re.compile(r"\s*(\.L\w+):")

# AArch64: str q0, [sp, #48]; ldp q0, q1, [x29, #-32]. A pair takes two places.
_ARM = re.compile(
    r"(?P<op>ldr|ldp|ldur|str|stp|stur)\s+(?P<kind>[qd])\d+,\s*(?:(?P<second>[qd])\d+,\s*)?"
    r"\[(?P<base>sp|x29)(?:,\s*#(?P<offset>-?\d+))?\]$"
)
# x86, as AT&T spells it: vmovups %zmm3, 64(%rsp); vpdpbusd 64(%rsp), %zmm1, %zmm2. A place that an
# index register is added to is an array.
_X86 = re.compile(
    r"(?P<op>v\w+)\s+(?P<operands>.*?)(?P<offset>-?\d*)\((?P<base>%r[sb]p)\)(?P<to>,?)"
)


def innermost_loops(assembly: str) -> list[list[str]]:
    """Return the instructions of every loop that holds no other: label to backward branch."""
    lines = assembly.splitlines()
    # Labels of inline assembly are spelled like those of the debugger's notes; some are jumped to.
    aims = {found.group(1) for line in lines if (found := _JUMP.match(line))}
    labels: dict[str, int] = {}
    loops = []
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = number
            continue
        branch = _JUMP.match(line)
        if branch is None or branch.group(1) not in labels:
            continue
        body = lines[labels[branch.group(1)] + 1 : number + 1]
        if any((inner := _LABEL.match(line)) and inner.group(1) in aims for line in body):
            continue
        loops.append([inner.strip() for inner in body if re.match(r"\s+[a-z]", inner)])
    return loops


def spilled_vectors(assembly: str) -> int:
    """Return how many vectors the innermost loop that spills most stores and loads again.

    For x86-64 and AArch64; of other processors, none is found.
    """
    return max((_spilled(loop) for loop in innermost_loops(assembly)), default=0)


def _spilled(loop: list[str]) -> int:
    stored: set[tuple[str, int]] = set()
    loaded: set[tuple[str, int]] = set()
    for instruction in loop:
        arm = _ARM.match(instruction)
        if arm:
            start, size = int(arm["offset"] or 0), 16 if arm["kind"] == "q" else 8
            places = [start, start + size] if arm["second"] else [start]
            found = stored if arm["op"].startswith("st") else loaded
            found.update((arm["base"], place) for place in places)
            continue
        x86 = _X86.match(instruction)
        if x86:
            # The destination comes last.
            found = loaded if x86["to"] else stored
            found.add((x86["base"], int(x86["offset"] or 0)))
    return len(stored & loaded)
