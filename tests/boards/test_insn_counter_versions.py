"""The instruction counter in every version of the emulator's plugin interface.

Distributions have one version each, so a small host stands in for the emulator: it offers the
interface of the version that it is built for, loads the plugin under that version's rules,
translates one block of three instructions and runs it.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tvm_mobilenet.boards.emulator import instruction_counter
from tvm_mobilenet.native_build import build_native
from tvm_mobilenet.targets import load_target

# `API` is the version; QEMU 7.2 has 1, 9.0 has 2 and no longer takes 1, 9.1 has 3.
HOST = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OFFERED __attribute__((visibility("default")))

enum { MIN_VERSION = API >= 2 ? 2 : 0, CPUS = 2, MAX_OPS = 16 };

struct insn { uint32_t word; };
struct tb { size_t count; struct insn insns[3]; };
struct scoreboard { size_t size; char *memory; };
struct u64 { struct scoreboard *score; size_t offset; };
struct op { struct u64 entry; uint64_t *plain; uint64_t value; };

static struct op ops[MAX_OPS];
static size_t op_count;
static void (*on_tb)(uint64_t, struct tb *);
static void (*on_syscall)(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t);

OFFERED void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void *callback) {
  (void)id;
  memcpy(&on_tb, &callback, sizeof on_tb);
}
OFFERED void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, void *callback) {
  (void)id;
  memcpy(&on_syscall, &callback, sizeof on_syscall);
}
OFFERED size_t qemu_plugin_tb_n_insns(const struct tb *tb) { return tb->count; }
OFFERED struct insn *qemu_plugin_tb_get_insn(struct tb *tb, size_t index) {
  return &tb->insns[index];
}

#if API >= 3
OFFERED size_t qemu_plugin_insn_data(const struct insn *insn, void *to, size_t size) {
  memcpy(to, &insn->word, size < 4 ? size : 4);
  return 4;
}
#else
OFFERED const void *qemu_plugin_insn_data(const struct insn *insn) { return &insn->word; }
#endif

#if API >= 2
OFFERED struct scoreboard *qemu_plugin_scoreboard_new(size_t size) {
  struct scoreboard *score = malloc(sizeof *score);
  *score = (struct scoreboard){size, calloc(CPUS, size)};
  return score;
}
static uint64_t *counter(struct u64 entry, int cpu) {
  return (uint64_t *)(void *)(entry.score->memory + cpu * entry.score->size + entry.offset);
}
OFFERED uint64_t qemu_plugin_u64_sum(struct u64 entry) {
  uint64_t sum = 0;
  for (int cpu = 0; cpu < CPUS; ++cpu) sum += *counter(entry, cpu);
  return sum;
}
OFFERED void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct tb *tb, int op,
                                                               struct u64 entry, uint64_t value) {
  (void)tb;
  if (op != 0 || op_count == MAX_OPS) abort();
  ops[op_count++] = (struct op){entry, NULL, value};
}
static void execute(int cpu) {
  for (size_t i = 0; i < op_count; ++i) *counter(ops[i].entry, cpu) += ops[i].value;
}
#else
OFFERED void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *tb, int op, void *to,
                                                      uint64_t value) {
  (void)tb;
  if (op != 0 || op_count == MAX_OPS) abort();
  ops[op_count++] = (struct op){{NULL, 0}, to, value};
}
static void execute(int cpu) {
  (void)cpu;
  for (size_t i = 0; i < op_count; ++i) *ops[i].plain += ops[i].value;
}
#endif

static void mark(uint64_t op, uint64_t slot) {
  on_syscall(7, 0, 0x7f4d4e, op, slot, 0, 0, 0, 0, 0, 0);
}

int main(int argc, char **argv) {
  struct { const char *target_name; struct { int min, cur; } version; int system; } info = {
      argv[2], {MIN_VERSION, API}, 0};
  void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == NULL) {
    printf("dlopen: %s\n", dlerror());
    return 2;
  }
  int *version = dlsym(plugin, "qemu_plugin_version");
  int (*install)(uint64_t, const void *, int, char **);
  *(void **)&install = dlsym(plugin, "qemu_plugin_install");
  if (version == NULL || *version < MIN_VERSION || *version > API || install == NULL) {
    printf("version %d is not taken\n", version ? *version : -1);
    return 3;
  }
  if (install(7, &info, argc - 3, argv + 3) != 0) return 4;
  /* fmla v0.4s, v1.4s, v2.4s; ldr q0, [x1]; b . */
  struct tb tb = {3, {{0x4e22cc20}, {0x3dc00020}, {0x14000000}}};
  on_tb(7, &tb);
  mark(1, 5);
  for (int i = 0; i < 10; ++i) execute(0);
  for (int i = 0; i < 3; ++i) execute(CPUS - 1);
  on_syscall(7, 0, 64, 1, 5, 0, 0, 0, 0, 0, 0); /* another system call is no mark */
  mark(2, 5);
  return 0;
}
"""


@pytest.fixture(scope="module", params=[1, 2, 3, 6])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler on the path")
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.c").write_text(HOST)
    build_native(
        [folder / "host.c"],
        folder / "host",
        load_target("host"),
        kind="program",
        defines={"API": str(request.param)},
        flags=["-rdynamic", "-ldl"],
    )
    return folder / "host"


def run(host: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(host), str(instruction_counter()), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_counts_the_instructions_of_every_processor(host, tmp_path):
    done = run(host, "aarch64", f"dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    begin, end = struct.iter_unpack("<7Q", file.read_bytes())
    assert begin == (1, 5, 0, 0, 0, 0, 0)
    assert end == (2, 5, 13, 0, 13, 13, 0)


def test_refuses_another_architecture(host, tmp_path):
    done = run(host, "arm", f"dir={tmp_path}")
    assert done.returncode == 4
    assert "this emulates arm; only aarch64 is known" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "dir=FOLDER is missing"), (["folder=x"], "the only option is dir=FOLDER")],
)
def test_refuses_to_start_without_its_folder(host, words, message):
    done = run(host, "aarch64", *words)
    assert done.returncode == 4
    assert message in done.stderr


def test_says_where_it_cannot_write(host, tmp_path):
    done = run(host, "aarch64", f"dir={tmp_path / 'absent'}")
    assert done.returncode == 0
    assert "cannot be written: No such file or directory" in done.stderr
