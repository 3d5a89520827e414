// Growing text, JSON and small helpers that need neither TVM nor sockets.
#ifndef BOARD_AGENT_TEXT_H_
#define BOARD_AGENT_TEXT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Text that grows as it is written to, up to TEXT_MAX bytes. It is always terminated; once memory
// or the maximum is exhausted `failed` is set and further writes do nothing.
typedef struct {
  char* data;
  size_t size;
  size_t capacity;
  bool failed;
} Text;

enum { TEXT_MAX = 64 << 20 };

void text_free(Text* text);
void text_add(Text* text, const char* part);
void text_add_bytes(Text* text, const void* data, size_t size);
__attribute__((format(printf, 2, 3))) void text_addf(Text* text, const char* format, ...);

// Writes `value` as a JSON string, or null for NULL. Bytes that are not ASCII become '?'.
void text_add_json(Text* text, const char* value);

// Seconds of a clock that never jumps, for deadlines.
double monotonic_s(void);

// Seconds since 1970.
double unix_s(void);

// Reads the beginning of a file, without the trailing newline. Returns false if there is none.
bool read_line(const char* path, char* line, size_t capacity);

// Reads a whole small file into `text`, at most `limit` bytes of it.
bool read_file(const char* path, Text* text, size_t limit);

// Reads a decimal number in a range; the whole of `text` has to be one.
bool parse_number(const char* text, double low, double high, double* value);

// Fills `data` from the kernel's random source.
bool random_bytes(void* data, size_t size);

#endif  // BOARD_AGENT_TEXT_H_
