#define _GNU_SOURCE
#include "counting.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As in native/insn_counter/insn_counter.c. */
enum { MARK_SYSCALL = 0x7f4d4e, OP_RESET = 0, OP_BEGIN = 1, OP_END = 2 };
enum { RECORD_WORDS = 2 + COUNT_CLASSES, RECORD_BYTES = 8 * RECORD_WORDS };
enum { MAX_RECORDS = 1 << 20 };

static const char folder_variable[] = "TVM_MOBILENET_COUNTS";
static const uint64_t calibration_slot = UINT64_MAX;

const char *const count_class_names[COUNT_CLASSES] = {"fma", "simd", "load_store", "branch", "other"};

struct record {
  uint64_t op;
  uint64_t slot;
  uint64_t counters[COUNT_CLASSES];
};

/* Never inlined: a mark then costs the same wherever it stands, and can be taken off. */
#define NOINLINE __attribute__((noinline))

static NOINLINE void mark(uint64_t op, uint64_t slot) {
  int kept = errno;
  syscall(MARK_SYSCALL, op, slot);
  errno = kept;
}

bool count_available(void) {
  const char *folder = getenv(folder_variable);
  return folder != NULL && folder[0] != '\0';
}

NOINLINE void count_begin(uint64_t slot) { mark(OP_BEGIN, slot); }

NOINLINE void count_end(uint64_t slot) { mark(OP_END, slot); }

void count_reset(void) {
  mark(OP_RESET, 0);
  count_begin(calibration_slot);
  count_end(calibration_slot);
  /* Without something after it the call becomes a jump, and this function's epilogue lies between the
   * marks. */
  __asm__ volatile("" ::: "memory");
}

static uint64_t get_little_endian(const unsigned char *bytes) {
  uint64_t value = 0;
  for (int index = 7; index >= 0; --index) value = value << 8 | bytes[index];
  return value;
}

static struct record parse_record(const unsigned char *bytes) {
  struct record record = {get_little_endian(bytes), get_little_endian(bytes + 8), {0}};
  for (int kind = 0; kind < COUNT_CLASSES; ++kind) {
    record.counters[kind] = get_little_endian(bytes + 16 + 8 * kind);
  }
  return record;
}

/* Read the whole file; null, with a reason in `message`, where it cannot be. */
static unsigned char *read_records(const char *path, size_t *count, char *message, size_t message_size) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    snprintf(message, message_size, "%s: %s; was the emulator started with its instruction counter?",
             path, strerror(errno));
    return NULL;
  }
  unsigned char *bytes = NULL;
  long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
  if (size <= 0 || size % RECORD_BYTES != 0 || size / RECORD_BYTES > MAX_RECORDS) {
    snprintf(message, message_size, "%s: %ld bytes are not a number of whole records; is its disk full?",
             path, size);
  } else if ((bytes = malloc((size_t)size)) == NULL) {
    snprintf(message, message_size, "%s: no memory for %ld bytes", path, size);
  } else if (fseek(file, 0, SEEK_SET) != 0 || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
    snprintf(message, message_size, "%s: cannot be read", path);
    free(bytes);
    bytes = NULL;
  }
  fclose(file);
  *count = bytes == NULL ? 0 : (size_t)size / RECORD_BYTES;
  return bytes;
}

/* Subtract begin from end, pair by pair; the first pair is the calibration. Returns false where the
 * records are no such pairs. */
static bool subtract(const unsigned char *bytes, size_t records, struct count_entry *entries) {
  if (records == 0 || records % 2 != 0) return false;
  uint64_t own_cost[COUNT_CLASSES] = {0};
  for (size_t pair = 0; pair < records / 2; ++pair) {
    struct record begin = parse_record(bytes + 2 * pair * RECORD_BYTES);
    struct record end = parse_record(bytes + (2 * pair + 1) * RECORD_BYTES);
    bool is_calibration = begin.slot == calibration_slot;
    if (begin.op != OP_BEGIN || end.op != OP_END || begin.slot != end.slot) return false;
    if (is_calibration != (pair == 0)) return false;
    for (int kind = 0; kind < COUNT_CLASSES; ++kind) {
      uint64_t counted = end.counters[kind] - begin.counters[kind];
      if (is_calibration) {
        own_cost[kind] = counted;
      } else {
        entries[pair - 1].classes[kind] = counted - own_cost[kind];
      }
    }
    if (!is_calibration) entries[pair - 1].slot = begin.slot;
  }
  return true;
}

int count_collect(struct count_entry **entries, char *message, size_t message_size) {
  *entries = NULL;
  if (!count_available()) {
    snprintf(message, message_size, "no instruction counter is loaded; only an emulated board has one");
    return -1;
  }
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%ld.counts", getenv(folder_variable), (long)getpid());
  size_t records = 0;
  unsigned char *bytes = read_records(path, &records, message, message_size);
  if (bytes == NULL) return -1;
  mark(OP_RESET, 0);
  int count = -1;
  struct count_entry *found = calloc(records / 2 + 1, sizeof *found);
  if (found == NULL) {
    snprintf(message, message_size, "%s: no memory for %zu records", path, records);
  } else if (!subtract(bytes, records, found)) {
    snprintf(message, message_size, "%s: the %zu marks in it do not pair up", path, records);
  } else {
    count = (int)(records / 2 - 1);
  }
  if (count > 0) {
    *entries = found;
  } else {
    free(found);
  }
  free(bytes);
  return count;
}
