"""The instruction counter: every class counted exactly, in an AArch64 program made for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tvm_mobilenet.boards.emulator import instruction_counter
from tvm_mobilenet.boards.sysroot import emulator_command
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.targets import Emulation, load_target, shipped_folder

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("emulator")]

AGENT = shipped_folder("native") / "board_agent"
CLASSES = ("fma", "simd", "load_store", "branch", "other")

# One instruction each, as the assembler knows it. x19 holds an address that can be written
# to, x20 is zero, p0 is all true.
KNOWN = {
    "fma": """
        fmla v0.4s, v1.4s, v2.4s
        fmla v0.4s, v1.4s, v2.s[3]
        fmla v0.2d, v1.2d, v2.2d
        fmla v0.8h, v1.8h, v2.8h
        fmla v0.8h, v1.8h, v2.h[7]
        fmla s0, s1, v2.s[1]
        fmls v0.4s, v1.4s, v2.4s
        fmls v0.8h, v1.8h, v2.8h
        fmls v0.2d, v1.2d, v2.d[1]
        fmlal v0.4s, v1.4h, v2.4h
        fmlal v0.4s, v1.4h, v2.h[2]
        fmlal2 v0.4s, v1.4h, v2.4h
        fmlal2 v0.4s, v1.4h, v2.h[2]
        fmlsl v0.4s, v1.4h, v2.4h
        fmlsl2 v0.4s, v1.4h, v2.h[1]
        fmadd s0, s1, s2, s3
        fmsub d0, d1, d2, d3
        fnmadd s0, s1, s2, s3
        fnmsub h0, h1, h2, h3
        mla v0.4s, v1.4s, v2.4s
        mla v0.8h, v1.8h, v2.h[1]
        mls v0.16b, v1.16b, v2.16b
        mls v0.4s, v1.4s, v2.s[1]
        smlal v0.4s, v1.4h, v2.4h
        smlal2 v0.4s, v1.8h, v2.h[1]
        umlal v0.8h, v1.8b, v2.8b
        umlal v0.2d, v1.2s, v2.s[1]
        smlsl v0.4s, v1.4h, v2.4h
        umlsl2 v0.4s, v1.8h, v2.8h
        sqdmlal v0.4s, v1.4h, v2.4h
        sqdmlsl v0.4s, v1.4h, v2.h[1]
        sqdmlal s0, h1, h2
        sqrdmlah v0.8h, v1.8h, v2.8h
        sqrdmlsh v0.8h, v1.8h, v2.h[1]
        sdot v0.4s, v1.16b, v2.16b
        sdot v0.4s, v1.16b, v2.4b[1]
        udot v0.4s, v1.16b, v2.16b
        udot v0.2s, v1.8b, v2.4b[1]
        usdot v0.4s, v1.16b, v2.16b
        usdot v0.4s, v1.16b, v2.4b[1]
        sudot v0.4s, v1.16b, v2.4b[1]
        smmla v0.4s, v1.16b, v2.16b
        ummla v0.4s, v1.16b, v2.16b
        usmmla v0.4s, v1.16b, v2.16b
        bfdot v0.4s, v1.8h, v2.8h
        bfdot v0.4s, v1.8h, v2.2h[1]
        bfmmla v0.4s, v1.8h, v2.8h
        bfmlalb v0.4s, v1.8h, v2.8h
        bfmlalt v0.4s, v1.8h, v2.h[1]
        fcmla v0.4s, v1.4s, v2.4s, #90
        fcmla v0.4s, v1.4s, v2.s[1], #90
        fmla z0.s, p0/m, z1.s, z2.s
        fmad z0.s, p0/m, z1.s, z2.s
        fnmls z0.d, p0/m, z1.d, z2.d
        fmla z0.s, z1.s, z2.s[1]
        fmlalb z0.s, z1.h, z2.h
        fcmla z0.s, p0/m, z1.s, z2.s, #90
        bfdot z0.s, z1.h, z2.h
        bfmmla z0.s, z1.h, z2.h
        fmmla z0.s, z1.s, z2.s
        mla z0.s, p0/m, z1.s, z2.s
        mad z0.s, p0/m, z1.s, z2.s
        mla z0.s, z1.s, z2.s[1]
        sdot z0.s, z1.b, z2.b
        udot z0.s, z1.b, z2.b[1]
        usdot z0.s, z1.b, z2.b
        smlalb z0.s, z1.h, z2.h
        smmla z0.s, z1.b, z2.b
    """,
    "simd": """
        fmul v0.4s, v1.4s, v2.4s
        fmul v0.4s, v1.4s, v2.s[1]
        fmulx v0.4s, v1.4s, v2.s[1]
        fmul v0.8h, v1.8h, v2.h[1]
        fadd v0.4s, v1.4s, v2.4s
        fmax v0.4s, v1.4s, v2.4s
        fminnm v0.4s, v1.4s, v2.4s
        faddp v0.4s, v1.4s, v2.4s
        fcadd v0.4s, v1.4s, v2.4s, #90
        fdiv s0, s1, s2
        fmul s0, s1, s2
        fcmp s0, s1
        fcsel s0, s1, s2, eq
        fcvtzs w2, s0
        scvtf s0, w2
        fmov s0, w2
        fmov x2, d0
        fmov v0.4s, #1.0
        mul v0.4s, v1.4s, v2.4s
        mul v0.8h, v1.8h, v2.h[1]
        smull v0.4s, v1.4h, v2.4h
        umull2 v0.4s, v1.8h, v2.h[1]
        sqdmull v0.4s, v1.4h, v2.4h
        sqdmulh v0.8h, v1.8h, v2.h[1]
        sqrdmulh v0.8h, v1.8h, v2.8h
        sqrdmulh v0.4s, v1.4s, v2.s[1]
        add v0.4s, v1.4s, v2.4s
        saddlp v0.4s, v1.8h
        addv s0, v1.4s
        sshr v0.4s, v1.4s, #3
        sqxtn v0.4h, v1.4s
        sqrshrn v0.4h, v1.4s, #3
        movi v0.4s, #0
        dup v0.4s, v1.s[1]
        dup v0.4s, w2
        umov w2, v0.h[1]
        ins v0.s[1], v1.s[2]
        ext v0.16b, v1.16b, v2.16b, #4
        tbl v0.16b, {v1.16b}, v2.16b
        zip1 v0.4s, v1.4s, v2.4s
        trn2 v0.4s, v1.4s, v2.4s
        and v0.16b, v1.16b, v2.16b
        bsl v0.16b, v1.16b, v2.16b
        bfcvtn v0.4h, v1.4s
        aese v0.16b, v1.16b
        sha256h q0, q1, v2.4s
        pmull v0.8h, v1.8b, v2.8b
        eor3 v0.16b, v1.16b, v2.16b, v3.16b
        sha512su0 v0.2d, v1.2d
        fmul z0.s, z1.s, z2.s
        fmul z0.s, z1.s, z2.s[1]
        fadd z0.s, p0/m, z0.s, z1.s
        fcadd z0.s, p0/m, z0.s, z1.s, #90
        mul z0.s, p0/m, z0.s, z1.s
        mul z0.s, z1.s, z2.s[1]
        smullb z0.s, z1.h, z2.h
        add z0.s, z1.s, z2.s
        shadd z0.s, p0/m, z0.s, z1.s
        dup z0.s, w2
        ptrue p1.s
        whilelt p1.s, w2, w3
    """,
    "load_store": """
        ldr x2, [x19]
        ldrb w2, [x19, #3]
        ldrsw x2, [x19, #4]!
        ldur x2, [x19, #-4]
        str x2, [x19], #8
        ldr x2, [x19, x20]
        ldp x2, x3, [x19]
        stp x2, x3, [x19, #-16]!
        ldr q0, [x19, #16]
        ldr s0, [x19], #0
        str d0, [x19]
        ldp q0, q1, [x19]
        stp q0, q1, [x19, #32]
        ld1 {v0.4s, v1.4s}, [x19]
        ld1 {v0.s}[1], [x19]
        ld1r {v0.4s}, [x19]
        ld4 {v0.4s, v1.4s, v2.4s, v3.4s}, [x19]
        st1 {v0.16b}, [x19], #16
        st2 {v0.4s, v1.4s}, [x19]
        ldr x2, . + 4
        prfm pldl1keep, [x19, #64]
        ldxr x2, [x19]
        stxr w2, x3, [x19]
        ldar x2, [x19]
        stlr x2, [x19]
        ldadd x2, x3, [x19]
        cas x2, x3, [x19]
        swp x2, x3, [x19]
        ld1w {z0.s}, p0/z, [x19]
        st1w {z0.s}, p0, [x19]
        ld1rqw {z0.s}, p0/z, [x19]
        ldr z0, [x19]
        str p0, [x19]
    """,
    "branch": """
        b . + 4
        bl . + 4
        b.eq . + 4
        b.ne . + 4
        cbz x2, . + 4
        cbnz w2, . + 4
        tbz x2, #3, . + 4
        tbnz x2, #63, . + 4
    """,
    "other": """
        add x2, x3, x4
        add x2, x3, #16
        sub w2, w3, w4, lsl #2
        subs x2, x3, #1
        madd x2, x3, x4, x5
        msub w2, w3, w4, w5
        smaddl x2, w3, w4, x5
        umulh x2, x3, x4
        sdiv x2, x3, x4
        and x2, x3, #0xff
        orr x2, x3, x4
        mov x2, #1
        movk x2, #1, lsl #16
        ubfm x2, x3, #1, #4
        extr x2, x3, x4, #5
        csel x2, x3, x4, eq
        ccmp x2, x3, #0, eq
        clz x2, x3
        rev x2, x3
        crc32b w2, w3, w4
        adr x2, . + 8
        adrp x2, .
        nop
        isb
        dmb ish
        mrs x2, nzcv
        msr nzcv, x2
    """,
}
CASES = [(kind, line.strip()) for kind, text in KNOWN.items() for line in text.strip().splitlines()]

HEAD = """
#include <stdio.h>
#include <stdlib.h>

#include "counting.h"

static char memory[4096] __attribute__((aligned(64)));

void run_cases(char *middle);
"""

ASSEMBLY_HEAD = """
  .arch armv8.6-a+fp16fml+sha2+aes+sha3+sve2+i8mm+bf16+f32mm
  .text
  .p2align 2
run_cases:
  stp x19, x20, [sp, #-32]!
  str x30, [sp, #16]
  mov x21, x0
"""

# The registers are set before the mark, so that between the marks stands the instruction alone.
CASE = """
  mov x19, x21
  mov x20, #0
  ptrue p0.b
  mov x0, #{slot}
  bl count_begin
  {instruction}
  mov x0, #{slot}
  bl count_end
"""

ASSEMBLY_TAIL = """
  ldr x30, [sp, #16]
  ldp x19, x20, [sp], #32
  ret
"""

MAIN = """
int main(int argc, char **argv) {
  (void)argv;
  struct count_entry *entries = NULL;
  char message[256];
  if (argc > 1) count_end(3); /* a mark that has no beginning */
  if (argc == 1) count_reset();
  run_cases(memory + 2048);
  int count = count_collect(&entries, message, sizeof message);
  if (count < 0) {
    printf("%s\\n", message);
    return 1;
  }
  printf("[");
  for (int index = 0; index < count; ++index) {
    printf("%s[%lu", index ? "," : "", (unsigned long)entries[index].slot);
    for (int kind = 0; kind < COUNT_CLASSES; ++kind) {
      printf(",%lu", (unsigned long)entries[index].classes[kind]);
    }
    printf("]");
  }
  printf("]\\n");
  free(entries);
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every known instruction between marks of its own; slot 0 is empty."""
    instructions = ["", *(instruction for _, instruction in CASES)]
    assembly = "".join(
        (
            ASSEMBLY_HEAD,
            *(CASE.format(slot=n, instruction=line) for n, line in enumerate(instructions)),
            ASSEMBLY_TAIL,
        )
    )
    quoted = "\n".join(f'  "{line.strip()}\\n"' for line in assembly.strip().splitlines())
    folder = tmp_path_factory.mktemp("known")
    source = folder / "known.c"
    source.write_text(f"{HEAD}\n__asm__(\n{quoted});\n{MAIN}")
    build_native(
        [source, AGENT / "counting.c"],
        folder / "known",
        load_target("rpi4"),
        kind="program",
        include=[AGENT],
    )
    return folder / "known"


def run(program: Path, folder: Path, *arguments: str, cpu: str = "max", counted: bool = True):
    target = load_target("rpi4").model_copy(update={"emulation": Emulation(qemu_cpu=cpu)})
    command = emulator_command(target)
    environment = {"PATH": os.environ["PATH"], "TVM_MOBILENET_COUNTS": str(folder)}
    if counted:
        command += ["-plugin", f"{instruction_counter()},dir={folder}"]
    return subprocess.run(
        [*command, str(program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_counts_one_of_its_class_for_every_known_instruction(program, tmp_path):
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads(done.stdout)
    assert entries[0] == [0, 0, 0, 0, 0, 0], "an empty pair of marks counts nothing"
    expected = [
        [slot, *(int(kind == name) for name in CLASSES)]
        for slot, (kind, _) in enumerate(CASES, start=1)
    ]
    wrong = {
        CASES[entry[0] - 1]: dict(zip(CLASSES, entry[1:], strict=True))
        for entry, right in zip(entries[1:], expected, strict=True)
        if entry != right
    }
    assert not wrong


def test_leaves_no_file_behind(program, tmp_path):
    run(program, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_says_that_marks_do_not_pair_up(program, tmp_path):
    done = run(program, tmp_path, "unpaired")
    assert done.returncode == 1
    assert "do not pair up" in done.stdout


def test_says_that_no_counter_is_loaded(program, tmp_path):
    done = run(program, tmp_path, counted=False)
    assert done.returncode == 1
    assert "was the emulator started with its instruction counter?" in done.stdout


def test_refuses_another_option(program, tmp_path):
    command = emulator_command(load_target("rpi4"))
    command += ["-plugin", f"{instruction_counter()},folder={tmp_path}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "the only option is dir=FOLDER" in done.stderr
