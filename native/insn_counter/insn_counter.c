/* A QEMU plugin that counts the AArch64 instructions a program retires, by class.
 *
 *   qemu-aarch64 -plugin insn_counter.so,dir=FOLDER PROGRAM
 *
 * The program marks what it wants counted with the system call MARK_SYSCALL, a number that no kernel
 * knows, so that on a real board it does nothing but fail with ENOSYS:
 *
 *   syscall(MARK_SYSCALL, op, slot)      op: 0 forget the records, 1 begin, 2 end
 *
 * At every mark but op 0, one record goes to FOLDER/<process id>.counts: little-endian 64-bit op, slot,
 * and the process's counters, one for each class. What lies between two marks is the difference of
 * their records, from the instruction after the first mark's to the second mark's own, included.
 *
 * Counters are added to once for each translated block, as it is entered, and a system call ends its
 * block: a record holds exactly what was retired before it. The counters are the process's: a forked
 * child goes on from a copy of its parent's. Where several threads compute at once, QEMU before 9.0
 * adds without locking and loses some.
 *
 * The plugin interface is declared here because distributions package the emulator without its header.
 * Reference: QEMU, docs/devel/tcg-plugins.rst; the versions of the interface are noted where they differ.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "classify.h"

enum { MARK_SYSCALL = 0x7f4d4e, OP_RESET = 0 };

#define EXPORTED __attribute__((visibility("default")))
#define WEAK __attribute__((weak)) /* null in the versions that lack it */

typedef uint64_t plugin_id;
struct plugin_tb;
struct plugin_insn;
struct plugin_scoreboard;

/* The beginning of qemu_info_t, which has only grown at its end. */
struct plugin_info {
  const char *target_name;
  struct {
    int min;
    int cur;
  } version;
};

/* qemu_plugin_u64, since version 2: one counter for each virtual processor. */
struct plugin_u64 {
  struct plugin_scoreboard *score;
  size_t offset;
};

enum { INLINE_ADD_U64 = 0 };

typedef void tb_callback(plugin_id id, struct plugin_tb *tb);
typedef void syscall_callback(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2,
                              uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                              uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, tb_callback *callback);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_callback *callback);
size_t qemu_plugin_tb_n_insns(const struct plugin_tb *tb);
struct plugin_insn *qemu_plugin_tb_get_insn(const struct plugin_tb *tb, size_t index);
/* Up to version 2 it takes the instruction alone and returns where its bytes are; from version 3 on it
 * copies them and returns how many. Declared without a prototype, called through the fitting one. */
void qemu_plugin_insn_data(void);
typedef const void *insn_data_v1(const struct plugin_insn *insn);
typedef size_t insn_data_v3(const struct plugin_insn *insn, void *destination, size_t size);

/* Version 1 (QEMU 7.2 to 8.2). */
WEAK void qemu_plugin_register_vcpu_tb_exec_inline(struct plugin_tb *tb, int op, void *counter,
                                                   uint64_t value);
/* Version 2 (QEMU 9.0) and later. */
WEAK struct plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size);
WEAK uint64_t qemu_plugin_u64_sum(struct plugin_u64 counter);
WEAK void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct plugin_tb *tb, int op,
                                                            struct plugin_u64 counter,
                                                            uint64_t value);

/* What QEMU reads to see whether it can load the plugin: the newest version that both know. */
EXPORTED int qemu_plugin_version = 1;

static int interface_version;
static char folder[PATH_MAX - 64];
static uint64_t plain_counters[CLASS_COUNT];   /* version 1 */
static struct plugin_scoreboard *scoreboard;   /* version 2 and later */

__attribute__((constructor)) static void choose_version(void) {
  if (qemu_plugin_register_vcpu_tb_exec_inline == NULL) qemu_plugin_version = 2;
}

static struct plugin_u64 counter_of(int kind) {
  return (struct plugin_u64){scoreboard, (size_t)kind * sizeof(uint64_t)};
}

static uint64_t counter_value(int kind) {
  return scoreboard != NULL ? qemu_plugin_u64_sum(counter_of(kind)) : plain_counters[kind];
}

static uint32_t instruction_word(const struct plugin_insn *insn) {
  unsigned char bytes[4] = {0};
  if (interface_version >= 3) {
    insn_data_v3 *copy_data = (insn_data_v3 *)(uintptr_t)qemu_plugin_insn_data;
    copy_data(insn, bytes, sizeof bytes);
  } else {
    insn_data_v1 *find_data = (insn_data_v1 *)(uintptr_t)qemu_plugin_insn_data;
    memcpy(bytes, find_data(insn), sizeof bytes);
  }
  /* Instructions are little-endian whatever the machine. */
  return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void on_translation(plugin_id id, struct plugin_tb *tb) {
  (void)id;
  uint64_t found[CLASS_COUNT] = {0};
  size_t count = qemu_plugin_tb_n_insns(tb);
  for (size_t index = 0; index < count; ++index) {
    ++found[classify(instruction_word(qemu_plugin_tb_get_insn(tb, index)))];
  }
  for (int kind = 0; kind < CLASS_COUNT; ++kind) {
    if (found[kind] == 0) continue;
    if (scoreboard != NULL) {
      qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, INLINE_ADD_U64, counter_of(kind),
                                                        found[kind]);
    } else {
      qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &plain_counters[kind],
                                               found[kind]);
    }
  }
}

static void put_little_endian(unsigned char *destination, uint64_t value) {
  for (int byte = 0; byte < 8; ++byte) destination[byte] = (unsigned char)(value >> (8 * byte));
}

/* The file is opened anew for every record: a descriptor kept would be one of the program's own, which
 * it could close, and would be shared with forked children. */
static void on_syscall(plugin_id id, unsigned vcpu, int64_t number, uint64_t op, uint64_t slot,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != MARK_SYSCALL) return;
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%ld.counts", folder, (long)getpid());
  if (op == OP_RESET) {
    if (unlink(path) != 0 && errno != ENOENT) {
      fprintf(stderr, "insn_counter: %s cannot be removed: %s\n", path, strerror(errno));
    }
    return;
  }
  unsigned char record[(2 + CLASS_COUNT) * 8];
  put_little_endian(record, op);
  put_little_endian(record + 8, slot);
  for (int kind = 0; kind < CLASS_COUNT; ++kind) {
    put_little_endian(record + 16 + 8 * kind, counter_value(kind));
  }
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0 || write(file, record, sizeof record) != (ssize_t)sizeof record) {
    fprintf(stderr, "insn_counter: %s cannot be written: %s\n", path, strerror(errno));
  }
  if (file >= 0) close(file);
}

EXPORTED int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv) {
  if (strcmp(info->target_name, "aarch64") != 0) {
    fprintf(stderr, "insn_counter: this emulates %s; only aarch64 is known\n", info->target_name);
    return -1;
  }
  for (int index = 0; index < argc; ++index) {
    if (strncmp(argv[index], "dir=", 4) != 0 || strlen(argv[index] + 4) >= sizeof folder) {
      fprintf(stderr, "insn_counter: %s: the only option is dir=FOLDER\n", argv[index]);
      return -1;
    }
    strcpy(folder, argv[index] + 4);
  }
  if (folder[0] == '\0') {
    fprintf(stderr, "insn_counter: dir=FOLDER is missing\n");
    return -1;
  }
  interface_version = info->version.cur;
  if (qemu_plugin_scoreboard_new != NULL) {
    scoreboard = qemu_plugin_scoreboard_new(CLASS_COUNT * sizeof(uint64_t));
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  return 0;
}
