#ifndef CHECKS_H
#define CHECKS_H

#include <stdint.h>

/* A reproducible stream of numbers (xorshift64). */
uint64_t next_random(uint64_t *state);

/* Feed damaged files to the readers; what they make of them is theirs, crashing is not. */
int fuzz_description(const char *model_file, const char *scratch, long rounds);
int fuzz_picture(const char *picture_file, const char *scratch, long rounds);

#endif
