/* Counting retired instructions, where the board is emulated and the emulator counts.
 *
 *   count_reset();
 *   count_begin(0); infer(); count_end(0);
 *   struct count_entry *entries;
 *   int count = count_collect(&entries, message, sizeof message);
 *
 * Marks are system calls that no kernel knows; native/insn_counter hears them and keeps a record of
 * each in a file. What a pair of marks costs itself is measured at the reset and taken off every
 * entry, so that an empty pair counts nothing. Everything that the process retires between two marks
 * counts, whichever thread does it: one thread at a time may mark.
 */
#ifndef TVM_MOBILENET_COUNTING_H
#define TVM_MOBILENET_COUNTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COUNT_CLASSES = 5 };

/* `fma`, `simd`, `load_store`, `branch`, `other`; an instruction belongs to exactly one. */
extern const char *const count_class_names[COUNT_CLASSES];

struct count_entry {
  uint64_t slot; /* as given to count_begin */
  uint64_t classes[COUNT_CLASSES];
};

/* Whether the emulator was started with a counter; on a real board it never is. */
bool count_available(void);

/* Forget what was counted, and measure what a pair of marks costs. */
void count_reset(void);

/* Begin and end one entry. Entries do not nest. A slot is any number but UINT64_MAX. */
void count_begin(uint64_t slot);
void count_end(uint64_t slot);

/* Hand out every entry since the reset, in order, and forget them.
 *
 * Returns how many there are; `*entries` is the caller's to free, and null where there are none.
 * Returns -1, with a reason in `message`, where there is no counter, its file cannot be read, or
 * marks do not pair up.
 */
int count_collect(struct count_entry **entries, char *message, size_t message_size);

#endif
